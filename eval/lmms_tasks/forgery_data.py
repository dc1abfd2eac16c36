"""Read by lmms-eval when it loads a task, so that the data are only needed for requested tasks.

The functions of the tasks are in ``llava_forgery.integrations.lmms_eval.tasks``.
"""

from llava_forgery.integrations.lmms_eval.data import locate

DATASET_PATH, DATASET_KWARGS = locate()
