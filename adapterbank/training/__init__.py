"""Training: `fit` for one task (`fit.py`), `fit_many` for several together (`many.py`).

`trainer.py` shows how a training is put together, and its loop. Four records go through all of it:

    Options   options.py     how to train
    Setting   setting.py     what all parts of one training share
    State     callbacks.py   how far it is, for callbacks
    History   history.py     what it did
"""
