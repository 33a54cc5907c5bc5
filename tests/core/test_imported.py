"""Import paths that a folder names: which modules may be imported."""

import pytest

from mtl_jax.core.errors import UserError
from mtl_jax.core.imported import refuse_untrusted


@pytest.mark.parametrize("trust", ["parts", ("parts",), ["other", "parts.heads"]])
def test_modules_are_trusted_by_name_a_package_for_those_in_it_and_one_may_stand_alone(trust):
    refuse_untrusted(["parts.heads:Wide"], trust, "runs/mine")


@pytest.mark.parametrize("trust", ["", (), "part", "parts.losses", ("parts.heads.wide",)])
def test_what_is_not_trusted_is_refused_with_the_flag(trust):
    with pytest.raises(UserError) as caught:
        refuse_untrusted(["parts.heads:Wide"], trust, "runs/mine")
    assert "runs/mine uses code of the module parts.heads (parts.heads:Wide)" in str(caught.value)
    assert "add --trust parts.heads (trust=('parts.heads',) in Python)" in str(caught.value)
