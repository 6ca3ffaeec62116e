"""What runs on a real GPU: its worlds, the passes of ``make test-gpu``, and facts about CUDA."""
