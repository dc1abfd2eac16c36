"""Read by lmms-eval when it loads a task, so that the data is looked for once a task is asked for.

The functions of the tasks are in ``llava_forgery.lmms.tasks``.
"""

from llava_forgery.lmms.data import locate

DATASET_PATH, DATASET_KWARGS = locate()
