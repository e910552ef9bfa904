"""Range setting: observers, estimators, data-free statistics and the calibration run."""
