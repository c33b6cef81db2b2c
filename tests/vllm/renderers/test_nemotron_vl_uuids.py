"""Keys for vLLM's caches: of the name and the salt, and never the name itself."""

import pytest
from vllm.exceptions import VLLMValidationError

from vllm_nemotron_vl.renderers.nemotron_vl_uuids import with_keys

IMAGES = {"image": ["pixels", None]}


def keys(names, salt=None, data=None, trusted=False):
    prompt = {"multi_modal_uuids": {"image": names}, "multi_modal_data": data or {}}
    if salt is not None:
        prompt["cache_salt"] = salt
    found = with_keys(prompt, trusted=trusted)
    assert prompt["multi_modal_uuids"] == {"image": names}
    return found["multi_modal_uuids"]["image"]


def test_a_key_is_of_name_and_salt():
    one, other, nothing = keys(["a", "b", None], "x")
    assert nothing is None
    assert len({one, other, *keys(["a"], "y"), "a", "b"}) == 5
    assert keys(["a"], "x") == [one]


def test_another_modality_has_other_keys():
    prompt = {"multi_modal_uuids": {"image": ["a"], "video": ["a"]}, "cache_salt": "x"}
    (image,), (video,) = with_keys(prompt, trusted=False)["multi_modal_uuids"].values()
    assert image != video


def test_without_a_salt_there_are_no_names():
    assert keys(["a", None], data={"image": ["pixels", "pixels"]}) == [None, None]
    assert keys([None, None], data=IMAGES) == [None, None]
    for data in (IMAGES, {"image": None}, {}):
        with pytest.raises(VLLMValidationError, match="has a uuid and no data"):
            keys(["a", None], data=data)


def test_trusted_names_are_keys():
    assert keys(["a", None], trusted=True) == ["a", None]
    prompt = {"prompt_token_ids": [1]}
    assert with_keys(prompt, trusted=False) is prompt


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("name", [5, b"a", "\ud800"])
def test_names_are_texts(name, trusted):
    with pytest.raises(VLLMValidationError, match="A uuid must be a text"):
        keys([None, name], "x", trusted=trusted)
