"""Devices by name: what this machine has is found out without torch, and what it has not is said in one line."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from running import fails

from valuembed import info, load
from valuembed._utils import devices
from valuembed._utils.devices import check_device, machine_devices
from valuembed.cli import main as cli
from valuembed.errors import DeviceError
from valuembed.models.multi_readout import MultiReadout

HERE = "this machine has: cpu"
CPU_BUILD = (
    "from typing import Optional\n__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n"
)
CUDA_BUILD = CPU_BUILD.replace("cuda: Optional[str] = None", "cuda: Optional[str] = '13.0'").replace("+cpu", "+cu130")


@pytest.fixture
def built(monkeypatch):
    """Torch as built for something, on Linux, with so many GPUs."""

    def build(version, gpus=0, accelerator=None):
        monkeypatch.setattr(devices, "_torch_version", lambda: version)
        monkeypatch.setattr(devices.sys, "platform", "linux")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        current = torch.device(accelerator) if accelerator else None
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: current)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)

    return build


@pytest.mark.parametrize(
    ("given", "name"),
    [(None, None), ("cpu", "cpu"), ("cpu:0", "cpu:0"), (torch.device("cpu"), "cpu"), (torch.device("cpu", 0), "cpu:0")],
)
def test_the_cpu_is_always_there(given, name):
    assert check_device(given) == name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("cdua", "device 'cdua' is unknown; did you mean 'cuda'? this machine has: cpu"),
        ("CPU", "device 'CPU' is unknown; did you mean 'cpu'? this machine has: cpu"),
        ("gpu", "device 'gpu' is unknown; "),
        ("", "device '' is unknown; this machine has: cpu"),
        (" cpu", "device ' cpu' is unknown; did you mean 'cpu'?"),
        ("auto", "device 'auto' is unknown; "),
        ("cuda:", "device 'cuda:' is unknown; did you mean 'cuda'?"),
        ("cuda:one", "device 'cuda:one' is unknown; did you mean 'cuda'?"),
        ("cuda:-1", "device 'cuda:-1' is unknown; did you mean 'cuda'?"),
        (True, "device True is unknown; "),
        ("cpu:7", "device 'cpu:7' is not there; this machine has: cpu"),
        ("cuda", "device 'cuda' is not there (torch 2.13.0+cpu is built without CUDA); this machine has: cpu"),
        ("cuda:1", "device 'cuda:1' is not there (torch 2.13.0+cpu is built without CUDA); this machine has: cpu"),
        (torch.device("cuda", 0), "is not there (torch 2.13.0+cpu is built without CUDA); this machine has: cpu"),
        ("xpu", "device 'xpu' is not there (torch 2.13.0+cpu is built without xpu); this machine has: cpu"),
        ("mps", "device 'mps' is not there (mps is Apple's); this machine has: cpu"),
        ("npu:0", "device 'npu:0' is not there (torch_npu is not installed); this machine has: cpu"),
        ("meta", "device 'meta' is not there: nothing can be computed on it, for it holds no numbers; this machine"),
        (0, "device 0 is not there; this machine has: cpu"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(built, given, message):
    built(CPU_BUILD)
    with pytest.raises(DeviceError) as raised:
        check_device(given)
    assert message in str(raised.value)
    assert HERE in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.process
def test_a_typo_and_a_gpu_without_cuda_are_told_without_torch():
    script = (
        "import sys\nfrom valuembed._utils import devices\n"
        f"devices._torch_version = lambda: {CPU_BUILD!r}\ndevices.sys.platform = 'linux'\n"
        "for name in ('cdua', 'cuda', 'mps', 'xpu', 'cpu:7', 'meta'):\n"
        "    try: devices.check_device(name)\n"
        "    except devices.DeviceError as error: assert 'this machine has: cpu' in str(error), error\n"
        "devices.check_device('cpu')\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")


def test_the_version_file_of_the_torch_that_is_installed_is_found():
    version = devices._torch_version()
    assert version is not None
    assert torch.__version__ in version
    assert (devices._not_built_for("cuda") is None) == bool(torch.version.cuda or torch.version.hip)


def test_gpus_are_counted(built):
    built(CUDA_BUILD, gpus=2, accelerator="cuda")
    assert machine_devices() == ["cpu", "cuda:0", "cuda:1"]
    assert [check_device(name) for name in ("cuda", "cuda:1", 1)] == ["cuda", "cuda:1", "cuda:1"]
    with pytest.raises(DeviceError, match=r"device 'cuda:2' is not there; this machine has: cpu, cuda:0, cuda:1$"):
        check_device("cuda:2")


def test_a_cuda_build_without_a_gpu(built):
    built(CUDA_BUILD)
    with pytest.raises(DeviceError, match=r"'cuda' is not there \(torch finds no such device, or no driver for it\); "):
        check_device("cuda")


def test_a_version_file_that_is_missing_leaves_it_to_torch(built):
    built(None, gpus=1)
    assert check_device("cuda:0") == "cuda:0"


def test_the_accelerator_of_another_vendor(built, monkeypatch):
    built(CPU_BUILD, accelerator="xpu")
    monkeypatch.setattr(devices, "_not_built_for", lambda kind: None)
    assert machine_devices() == ["cpu", "xpu:0"]
    assert check_device("xpu") == "xpu"


@pytest.fixture
def refused(built):
    """The start of every message about CUDA here."""
    built(CPU_BUILD)
    return r"^device 'cuda(:0)?' is not there .*this machine has: cpu$"


@pytest.mark.parametrize(
    "use",
    [
        lambda: load("bundled", device="cuda"),
        lambda: info("bundled", device="cuda"),
        lambda: MultiReadout.load("bundled", {"va": "va"}, device="cuda"),
    ],
    ids=["load", "info", "panel"],
)
def test_every_way_to_a_model_checks(refused, use):
    with pytest.raises(DeviceError, match=refused):
        use()


def test_encode_and_pools_check_before_anything_moves(refused):
    model = load("bundled", device=torch.device("cpu"))
    assert model.encode("a", device="cpu").shape == (model.get_embedding_dimension(),)
    for use in (
        lambda: model.encode("a", device="cuda:0"),
        lambda: model.encode(["a", "b"], device=["cpu", "cuda:0"]),
        lambda: model.start_multi_process_pool(["cpu", "cuda:0"]),
    ):
        with pytest.raises(DeviceError, match=refused):
            use()


@pytest.mark.parametrize("command", [["info"], ["similarity", "a", "b"], ["explain", "a"]])
@pytest.mark.parametrize("device", ["cuda", "cdua"])
def test_the_command_line_says_it_in_one_line(built, command, device):
    built(CPU_BUILD)
    assert cli.app.registered_commands
    message = fails(*command, "--device", device)
    assert f"error: device '{device}' is" in message
    assert message.endswith(HERE)


def test_evaluations_check_before_they_read_a_task(built):
    from valuembed.evaluation.runner import evaluate

    built(CPU_BUILD)
    with pytest.raises(DeviceError, match="device 'mps' is not there"):
        evaluate("bundled", ["sts:nowhere.jsonl"], device="mps")
