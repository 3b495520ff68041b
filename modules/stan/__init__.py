"""The parts of STAN (CVPR 2023, arXiv 2301.11116): a branch beside CLIP that relates the frames of a clip."""
