import torch

from cases import concept
from palimpsest.erasers import Nothing
from tiny import tiny_model


def test_hands_back_the_base_itself():
    model = tiny_model()
    stages = list(Nothing().stages(model, [concept()], random=torch.Generator()))
    assert stages == [(0, model)]
    assert Nothing().erase(model, [concept()], random=torch.Generator()) is model
