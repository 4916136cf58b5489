"""From candidates to labels: filters, selection, calibration, class ids."""
