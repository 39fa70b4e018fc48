"""Networks outside training: checkpoints, devices and exports."""
