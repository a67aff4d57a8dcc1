"""``mapet quickstart``: what is said of going on; the whole is the README's first command."""

from mapet.cli import main


def test_an_interrupted_quickstart_repeats_its_options(monkeypatch, capsys):
    def interrupted(o):
        raise KeyboardInterrupt

    monkeypatch.setattr("mapet.cli.quickstart.quickstart", interrupted)
    assert main(["quickstart", "--out", "a b", "--epochs", "0.5", "--max-images", "99"]) == 130
    assert "resume with: mapet quickstart --out 'a b' --epochs 0.5 --max-images 99\n" in capsys.readouterr().out
