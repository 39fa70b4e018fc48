"""Networks outside training: checkpoints, running both nets, devices and exports."""
