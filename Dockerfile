# A server for embeddings, see docs/serving.md:
#     docker build -t valuembed .
#     docker run -p 127.0.0.1:8000:8000 -e VALUEMBED_API_KEY -v models:/models valuembed --model Qwen/Qwen3-0.6B
# For NVIDIA GPUs, build with --build-arg TORCH_INDEX=https://pypi.org/simple and run with --gpus all.
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /build
COPY constraints.txt ./
# By itself first: it is by far the largest, and changes least.
RUN pip install -c constraints.txt --index-url "$TORCH_INDEX" torch
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install -c constraints.txt ".[serve]" && rm -rf /build/*

RUN useradd --create-home valuembed && install -d -o valuembed /models
USER valuembed
WORKDIR /home/valuembed
ENV HF_HOME=/models OMP_WAIT_POLICY=PASSIVE PYTHONUNBUFFERED=1
VOLUME /models
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# Inside a container every address is another machine's; which of them reach it is decided by -p.
ENTRYPOINT ["valuembed", "serve", "--host", "0.0.0.0"]
