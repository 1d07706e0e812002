"""profiles.py: sizes of an experiment, as plain values; the rule that carries the published weights to them."""
import inspect
import json
from dataclasses import replace

import pytest

from amdlib import methods
from amdlib.errors import SettingError
from amdlib.methods.amd import AMDLoss
from amdlib.methods.fgd import FGDLoss
from amdlib.methods.fkd import FKDLoss
from amdlib.methods.mgd import MGDLoss
from amdlib.paper.profiles import DRY_RUN, PROFILES, Profile, find_profile, scale_weights

EVERY = [*PROFILES.values(), DRY_RUN]


@pytest.mark.parametrize('profile', EVERY, ids=lambda profile: profile.name)
def test_every_profile_says_what_it_can_show_and_where_its_data_come_from(profile):
    assert len(profile.can_show) > 80
    assert profile.data in ('shapes', 'folder', 'coco', 'first_of_coco', 'tenth_of_coco')
    assert (profile.first_images is not None) == (profile.data == 'first_of_coco')
    assert 'student' in profile.epochs
    assert find_profile(profile.name) == profile


@pytest.mark.parametrize('profile', EVERY, ids=lambda profile: profile.name)
def test_a_profile_comes_back_from_json(profile):
    back = Profile.from_dict(json.loads(json.dumps(profile.to_dict())))
    assert back == profile
    assert hash(back) == hash(profile)


def test_the_dry_run_is_the_paper_in_small_and_no_profile_for_tables():
    paper, changed = PROFILES['paper'], {name for name, value in DRY_RUN.to_dict().items()
                                         if value != PROFILES['paper'].to_dict()[name]}
    assert changed == {'name', 'data', 'image_px', 'epochs', 'workers', 'log_every', 'score_thr', 'published',
                       'first_images', 'dry_run', 'can_show'}
    assert DRY_RUN.dry_run
    assert not paper.dry_run
    assert DRY_RUN.name not in PROFILES


def test_the_tenth_is_the_paper_with_other_images_and_epochs():
    paper, tenth = (PROFILES[name].to_dict() for name in ('paper', 'tenth'))
    assert {name for name in paper if paper[name] != tenth[name]} == {'name', 'data', 'epochs', 'can_show'}
    assert PROFILES['tenth'].published


def test_an_unknown_profile_is_refused_with_those_there_are():
    with pytest.raises(SettingError, match="'tiny'") as told:
        find_profile('tiny')
    assert all(name in str(told.value) for name in PROFILES)


# ---- the rule for weights ---------------------------------------------------------------------------------------

@pytest.mark.parametrize('profile', ['paper', 'tenth'])
@pytest.mark.parametrize('name', methods.names())
def test_the_papers_scale_leaves_weights_as_they_are(name, profile):
    method = methods.find_method(name)
    defaults = inspect.signature(method).parameters
    for options in (*method.PUBLISHED.values(), {}):
        scaled = scale_weights(method, options, PROFILES[profile])
        assert options.items() <= scaled.items()
        assert all(value == options.get(key, defaults[key].default) for key, value in scaled.items())


def test_the_rule_by_hand():
    """64 channels at 100x50: a quarter of the channels, 1333 * 800 / 5000 = 213.28 times fewer positions."""
    profile = replace(PROFILES['mini'], neck_channels=64, image_px=(100, 50))
    assert scale_weights(AMDLoss, {'alpha': 1e-5, 'phi': 0.7, 'mask_ratio': 0.5}, profile) == {
        'alpha': pytest.approx(1e-5 * 4 * 213.28, rel=1e-12), 'phi': 0.7, 'mask_ratio': 0.5}
    assert scale_weights(MGDLoss, {}, profile) == {'alpha_mgd': pytest.approx(2e-5 * 4 * 213.28, rel=1e-12)}
    assert scale_weights(FKDLoss, {}, profile) == pytest.approx({
        'feature_weight': 7e-5 * 2 * 213.28 ** .5, 'channel_weight': 4e-3 * 2, 'spatial_weight': 4e-3 * 213.28 ** .5,
        'nonlocal_weight': 7e-5 * 2 * 213.28 ** .5}, rel=1e-12)
    ones = {'alpha_fgd': 1, 'beta_fgd': 2, 'gamma_fgd': 3, 'gamma_channel_fgd': 4, 'lambda_fgd': 5}
    assert scale_weights(FGDLoss, ones, profile) == (
        pytest.approx({'alpha_fgd': 4, 'beta_fgd': 8, 'gamma_fgd': 3 * 213.28, 'gamma_channel_fgd': 4 * 4,
                       'lambda_fgd': 5 * 4 * 213.28}, rel=1e-12))


def test_a_norm_over_the_batch_keeps_its_value_at_other_batches():
    """FKD's terms grow with the square root of the images in a step, the other methods' are means over them."""
    paper = PROFILES['paper']
    plain, eight = (scale_weights(FKDLoss, {}, paper, images) for images in (2, 8))
    assert eight == pytest.approx({name: value / 2 for name, value in plain.items()}, rel=1e-12)
    for method in (AMDLoss, MGDLoss, FGDLoss):
        assert scale_weights(method, {}, paper, 8) == scale_weights(method, {}, paper)


@pytest.mark.parametrize('name', methods.names())
def test_a_factor_is_on_every_weight_of_a_method_and_on_nothing_else(name):
    method = methods.find_method(name)
    for options in (*method.PUBLISHED.values(), {}):
        plain, less = (scale_weights(method, options, PROFILES['mini'], 4, factor) for factor in (1.0, 0.1))
        assert less == {key: pytest.approx(value / 10, rel=1e-12) if key in method.WEIGHT_EXPONENTS else value
                        for key, value in plain.items()}


@pytest.mark.parametrize('profile', EVERY, ids=lambda profile: profile.name)
def test_the_papers_features_are_not_scaled_and_students_start_as_fgds_and_mgds_do(profile):
    if profile.name in ('tenth', 'paper', 'dryrun'):
        assert (profile.reference_rms, profile.keep_features, profile.arm, profile.shipped) == (
            None, False, 'inherit', '')
    assert profile.arm in ('alone', 'inherit')
    assert not (profile.shipped and profile.published)


def test_the_rule_keeps_amds_weighted_term_for_the_same_error_an_element():
    profile = replace(PROFILES['mini'], neck_channels=64, image_px=(128, 128))
    weight = scale_weights(AMDLoss, {}, profile)['alpha']
    large, small = 256 * 1333 * 800, 64 * 128 * 128  # elements, up to the stride, for an error of 1 each
    assert weight * small == pytest.approx(2e-5 * large, rel=1e-12)


def test_the_options_that_are_given_stay_as_they_were():
    given = {'alpha': 1e-5}
    scale_weights(AMDLoss, given, PROFILES['mini'])
    assert given == {'alpha': 1e-5}
