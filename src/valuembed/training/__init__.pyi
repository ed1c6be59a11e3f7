from .finetune import STATE as STATE, Training as Training, train as train
from .settings import TrainSettings as TrainSettings, is_first_process as is_first_process
