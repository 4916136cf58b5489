"""What can be measured: our models, backbones, models of other libraries, raw pixels."""
