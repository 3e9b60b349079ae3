"""The contestants: the frozen base's floor, transformers' Trainer, TRL's SFTTrainer, and this project's own loop."""
