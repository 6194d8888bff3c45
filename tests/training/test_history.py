"""The history keeps one float an epoch for every name."""

import math

from xpnet.training import History


def test_values_that_only_some_epochs_have_stay_in_step():
    history = History()
    history.record({"loss": 2.0})
    history.record({"loss": 1.0, "val_loss": 1.5})
    history.record({"loss": 0.5})
    assert history.epochs == 3
    assert history["loss"] == [2.0, 1.0, 0.5]
    assert [math.isnan(v) for v in history["val_loss"]] == [True, False, True]
    assert history["val_loss"][1] == 1.5
    assert history.to_csv() == "epoch,loss,val_loss\n1,2.0,nan\n2,1.0,1.5\n3,0.5,nan\n"
