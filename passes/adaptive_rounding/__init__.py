"""AdaRound: rounding each weight up or down so that the results change least."""
