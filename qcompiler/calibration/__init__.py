"""How ranges are found: observers, estimators, data-free statistics and the calibration run."""
