"""cityopt: a sweep orchestrator for Cityscapes segmentation."""
