import pytest

from tasks.exceptions import InputError
from tasks.settings import STARTER, Settings


def test_sources_in_their_order(tmp_path, monkeypatch):
    assert Settings.load().gpaw.cutoff_ev == 400
    monkeypatch.setenv("MEISSNER_GPAW__CUTOFF_EV", "450")
    monkeypatch.setenv("MEISSNER_GPAW__EXTRA_BANDS", "12")
    assert Settings.load().gpaw.cutoff_ev == 450
    profile = tmp_path / "mine.toml"
    profile.write_text("[gpaw]\ncutoff_ev = 500\n")
    assert Settings.load(profile).gpaw.cutoff_ev == 500
    settings = Settings.load(profile, gpaw={"cutoff_ev": 550})
    assert (settings.gpaw.cutoff_ev, settings.gpaw.extra_bands) == (550, 12)


def test_flags_that_are_not_given_change_nothing():
    assert Settings.load(workspace=None, bands={"limit": None}) == Settings.load()


def test_the_starter_profile_is_known_by_name():
    settings = Settings.load("starter")
    assert settings.bands.limit == 6
    assert settings.supercon == str(STARTER / "supercon.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[gpaw]\ncutof_ev = 1", r"Setting 'gpaw.cutof_ev': Extra inputs are not permitted"),
        ("[gpaw]\ncutoff_ev = -1", r"Setting 'gpaw.cutoff_ev': Input should be greater than 0 \(got -1\)"),
        ("[gpaw", "is not valid TOML"),
    ],
    ids=["unknown name", "out of range", "broken file"],
)
def test_a_bad_profile_is_one_sentence(tmp_path, text, message):
    profile = tmp_path / "bad.toml"
    profile.write_text(text)
    with pytest.raises(InputError, match=message):
        Settings.load(profile)


def test_an_unknown_profile_is_one_sentence():
    with pytest.raises(InputError, match=r"Profile 'nowhere' is neither one of \['starter'\] nor a TOML file"):
        Settings.load("nowhere")


@pytest.mark.parametrize(
    ("given", "sources"),
    [
        ("a.zip", ("a.zip",)),
        ("[a].cif", ("[a].cif",)),
        (["a.zip", "mp"], ("a.zip", "mp")),
        ('["a.zip", "optimade:oqmd"]', ("a.zip", "optimade:oqmd")),
    ],
)
def test_crystals_are_one_source_or_several(given, sources, tmp_path, monkeypatch):
    assert Settings.load(crystals=given).crystals == sources
    profile = tmp_path / "mine.toml"
    profile.write_text(f"crystals = {given!r}\n")
    assert Settings.load(profile).crystals == sources
    if isinstance(given, str):
        monkeypatch.setenv("MEISSNER_CRYSTALS", given)
        assert Settings.load().crystals == sources
    with pytest.raises(InputError, match="Setting 'crystals'"):
        Settings.load(crystals=[])


@pytest.mark.parametrize("name", ["mp_api_key", "notify_url"])
@pytest.mark.parametrize("value", ['"planted-key"', '["planted-key"]'], ids=["text", "list"])
def test_a_secret_in_a_profile_is_refused_and_not_shown(tmp_path, name, value):
    profile = tmp_path / "mine.toml"
    profile.write_text(f"workers = 1\n{name} = {value}\n")
    with pytest.raises(InputError, match=rf"'{name}' is a secret .* give it as MEISSNER_{name.upper()}$") as raised:
        Settings.load(profile)
    assert "planted" not in str(raised.value)


def test_a_key_of_the_wrong_type_is_not_shown():
    with pytest.raises(InputError, match=r"^Setting 'mp_api_key': Input should be a valid string$") as raised:
        Settings.load(None, mp_api_key=["planted-key"])
    assert raised.value.__cause__ is None


def test_a_secret_is_not_printed(monkeypatch):
    monkeypatch.setenv("MEISSNER_MP_API_KEY", "planted-key")
    settings = Settings.load()
    assert "planted-key" not in repr(settings) + settings.model_dump_json()
