"""Trainings that docs/results quotes, run by ``python -m projects.training_study.trainings``."""
