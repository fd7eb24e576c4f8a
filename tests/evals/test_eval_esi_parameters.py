"""The count of parameters, against the published size and against a sum by hand."""

import esi_parameters


def test_mamba_130m_has_its_published_size_and_esi_adds_few():
    row = esi_parameters.count("mamba-130m")
    assert row["parameters"] == 129_135_360  # of transformers' MambaForCausalLM with mamba-130m-hf's configuration
    assert sum(row["esi_parts"].values()) == row["esi_parameters"]
    assert 0 < row["share_of_model"] < 0.05
