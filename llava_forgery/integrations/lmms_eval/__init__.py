"""The skill as a model of lmms-eval, and the functions of the tasks under ``eval/lmms_tasks``."""
