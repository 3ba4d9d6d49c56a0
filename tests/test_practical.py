"""The practical session: what the tool makes of its one source, and checks that name the right mistake or none."""

import ast
import json
import os
import re
import subprocess
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from packaging.requirements import Requirement
from torch import nn

from benchmarks.browser import jupyter_lab
from conftest import opened
from tme_utils import paths

TOOL = Path(os.environ.get("PRACTICAL_VENV", f"{sys.prefix}-practical"))  # beside the environment, as `make` puts it
HOLES = {  # what is written into each hole, and the function of `checks` that looks at it
    "to_images": "images",
    "Encoder": "encoder",
    "Decoder": "decoder",
    "reparameterize": "reparameterization",
    "kl_divergence": "divergence",
    "reconstruction_cost": "cost",
    "negative_elbo": "loss",
    "train_epoch": "epoch",
    "evaluate": "evaluation",
    "generate": "generation",
    "ConvDecoder": "convolution",
    "codes": "plane",
    "picture": "pixels",
    "compare": None,  # its call shows the hole; its scores are held against their bounds
}
UNKNOWN = "→ No mistake that this sheet knows gives these numbers."


@pytest.fixture(scope="module")
def handed_out(tmp_path_factory):
    """Write a variant as `make practical` does, into a new folder, and return its text."""
    if not (TOOL / "ready").is_file():
        message = "jupytext-notebook-helper is not there: make practical installs it"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)

    def handed_out(variant):
        folder = tmp_path_factory.mktemp("handout")
        file, tool = folder / variant / "vae.ipynb", f"PRACTICAL_VENV={TOOL}"
        command = ["make", f"--assume-old={TOOL / 'ready'}", str(file), f"HANDOUT={folder}", tool]
        subprocess.run(command, cwd=paths.ROOT, check=True)
        assert [path.name for path in file.parent.iterdir()] == ["vae.ipynb"]
        text = file.read_text(encoding="utf-8")
        nbformat.validate(nbformat.reads(text, nbformat.NO_CONVERT))
        return text

    return handed_out


@pytest.fixture(scope="module")
def student_text(handed_out):
    return handed_out("student/local")


@pytest.fixture(scope="module")
def student(student_text):
    return cells_of(student_text)


@pytest.fixture(scope="module")
def solution(handed_out):
    return cells_of(handed_out("solution/local"))


@pytest.fixture(scope="module")
def teacher(handed_out):
    return cells_of(handed_out("teacher/colab"))


def cells_of(text):
    """(type, source) of every cell."""
    return [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]


def code_of(cells):
    return [source for kind, source in cells if kind == "code"]


def prose_of(cells):
    return "\n".join(source for kind, source in cells if kind == "markdown")


def defining(cells, name):
    """The code cell that defines a function or class, and the code cell after it."""
    codes = code_of(cells)
    (i,) = [i for i, source in enumerate(codes) if re.search(rf"^(?:def|class) {name}\b", source, re.MULTILINE)]
    return codes[i], codes[i + 1]


def after_hole(name):
    """The cell of the sheet that checks a hole, as source."""
    calls = {"compare": "compare((2,), 0)", "ConvDecoder": "checks.convolution(ConvDecoder)"}
    return calls.get(name, f"checks.{HOLES[name]}({name})")


@pytest.fixture(scope="module")
def solved(solution):
    """The names of the solved sheet after all its cells have run on few images, both halves of part 7 included."""
    modules, before = dict(sys.modules), os.getcwd()
    names, printed = {"__name__": "__main__"}, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOTEBOOK_PROFILE", "fast-test")
        patch.setattr("builtins.print", lambda *texts, **_: printed.append(" ".join(map(str, texts))))
        os.chdir(paths.ROOT / "practical")
        try:
            for source in code_of(solution):
                exec(compile(source.replace('CHOICE = {"', 'CHOICE = {"convolution", "'), "cell", "exec"), names)
        finally:
            os.chdir(before)
            for name in set(sys.modules) - set(modules):
                if name.startswith("practical"):
                    del sys.modules[name]
    names["printed"] = printed
    return names


@pytest.fixture
def names(solved):
    """A copy of them to spoil."""
    return dict(solved)


def test_the_same_source_makes_the_same_file(handed_out, student_text):
    assert handed_out("student/local") == student_text
    assert "practical/handout/" in (paths.ROOT / ".gitignore").read_text(encoding="utf-8")
    tracked = subprocess.run(["git", "ls-files", "practical"], cwd=paths.ROOT, capture_output=True, text=True)
    assert ".ipynb" not in tracked.stdout


def test_the_solved_sheet_passes_every_check(solved):
    passed = Counter(re.findall(r"(?m)^✓ (.+?):", "\n".join(solved["printed"])))
    scores = {"score": 6}  # the model of the plane, four dimensions, one convolution
    assert passed == Counter([name for name, check in HOLES.items() if check] + ["the two sets"]) + Counter(scores)


@pytest.mark.parametrize("name", HOLES)
def test_a_hole_fails_with_its_instruction(name, names, student):
    hole, check = defining(student, name)
    instruction = re.search(r"# (.+)\n\n +raise NotImplementedError\((?:\n +)?[\"'](.+)[\"']", hole)
    assert instruction[1] == instruction[2]
    assert "assert False, 'Your lines replace this line and the one above.'" in hole
    assert after_hole(name) in check or name == "compare"
    exec(hole, names)
    with pytest.raises(NotImplementedError) as raised:
        exec(check, names)
    assert str(raised.value) == instruction[1]
    if name != "compare":
        assert raised.value._render_traceback_() == [f"Still to be written: {instruction[1]}"]
    with pytest.raises(NotImplementedError):
        exec(after_hole(name), names)


@pytest.mark.parametrize("part", [*(name for name in HOLES if HOLES[name]), "the two sets"])
def test_a_known_mistake_is_told_by_its_own_hint_and_by_no_other(part, names, student, capsys):
    checks = names["checks"]
    mistakes = [m for m in checks.mistakes() if m.part == part]
    assert len(mistakes) >= 3
    for known in mistakes:
        names[part] = known.wrong
        call = "checks.unseen(*x)" if part == "the two sets" else after_hole(part)
        with pytest.raises(checks.NotYetError) as raised:
            exec(call, names | {"x": known.wrong})
        lines = str(raised.value).splitlines()
        assert lines[0].startswith(f"{part} is not right yet: "), known.name
        assert [line.split(":")[0].strip() for line in lines[1:3]] == ["came", "should be"]
        assert lines[3] == f"→ {known.hint}", known.name
        assert known.sharper not in str(raised.value)
        capsys.readouterr()
        checks.hint()
        assert capsys.readouterr().out == f"{known.sharper}\n"


def test_there_are_many_known_mistakes_and_no_hint_stands_for_two(solved):
    mistakes = solved["checks"].mistakes()
    assert len(mistakes) >= 100
    assert Counter(m.part for m in mistakes).keys() == {*(n for n in HOLES if HOLES[n]), "the two sets"}
    for name, count in Counter((m.part, m.sharper) for m in mistakes).items():
        assert count == 1, name
    table = solved["checks"].table_of_mistakes()
    assert len(table.splitlines()) == 2 + len(mistakes)
    assert all(line.count("|") == 5 for line in table.splitlines())


def test_the_teachers_page_quotes_the_checks(solved, teacher):
    rows = re.findall(r"(?m)^\| `(\w+)`: (.+?) \| (.+) \| (.+) \|$", prose_of(teacher))
    known = {(m.part, m.name, m.hint, m.sharper) for m in solved["checks"].mistakes()}
    assert len(rows) >= 10
    assert set(rows) <= known


def noise_of_numpy(mu, logvar):
    return mu + torch.sqrt(logvar.exp()) * torch.from_numpy(np.random.randn(*mu.shape)).to(mu)  # noqa: NPY002


def by_torch(mu, logvar):
    return torch.distributions.Normal(mu, (logvar / 2).exp()).rsample()


def kl_by_torch(mu, logvar):
    q = torch.distributions.Normal(mu, (logvar / 2).exp())
    return torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(-1)


def cost_by_torch(logits, x):
    return -(x * F.logsigmoid(logits) + (1 - x) * F.logsigmoid(-logits)).flatten(1).sum(dim=1)


def epoch_with_indices(names):
    def train_epoch(model, optimizer, x, batch_size=128):
        order = np.random.permutation(len(x))  # noqa: NPY002
        for start in range(0, len(x), batch_size):
            loss = names["negative_elbo"](model, x[order[start : start + batch_size]])
            loss.backward()
            optimizer.step()
            model.zero_grad()
        return loss.item()

    return train_epoch


def all_at_once(names):
    return lambda model, x, batch_size=1000: names["negative_elbo"](model, x)


def drawn_by(function):
    def generate(model, n_images, generator):
        z = function(n_images, model.latent_dim, generator=generator)
        return torch.sigmoid(model.decoder(z))

    return generate


RIGHT = {
    "to_images": [
        lambda pixels: (pixels / 255)[:, None],
        lambda pixels: pixels.to(torch.float32).div(255).unsqueeze(1),
    ],
    "reparameterize": [noise_of_numpy, by_torch, lambda mu, logvar: mu - (logvar / 2).exp() * torch.randn(mu.shape)],
    "kl_divergence": [kl_by_torch, lambda mu, logvar: ((mu**2 + logvar.exp() - logvar - 1) / 2).sum(dim=-1)],
    "reconstruction_cost": [cost_by_torch, lambda logits, x: cost_by_torch(logits.float(), x.float())],
    "generate": [
        drawn_by(lambda n, d, generator: torch.empty(n, d).normal_(generator=generator)),
        drawn_by(lambda n, d, generator: torch.normal(0.0, 1.0, (n, d), generator=generator)),
        lambda model, n, generator: torch.cat([drawn_by(torch.randn)(model, 1, generator) for _ in range(n)]),
    ],
    "codes": [lambda model, x: model.encoder(x)[0].detach().numpy()],
    "picture": [lambda model, z1, z2: model.decoder(torch.Tensor([[z1, z2]])).sigmoid().squeeze().numpy()],
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_version_passes_however_it_is_written(name, names):
    for version in RIGHT[name]:
        names[name] = torch.no_grad()(version) if name in ("codes", "picture", "generate") else version
        exec(after_hole(name), names)


@pytest.mark.parametrize(("name", "version"), [("train_epoch", epoch_with_indices), ("evaluate", all_at_once)])
def test_a_right_loop_passes_however_it_is_written(name, version, names):
    exec(after_hole(name), names | {name: version(names)})


class Sideways(nn.Module):
    """An encoder with a mistake of its own: no ReLU but a sine."""

    def __init__(self, latent_dim):
        super().__init__()
        self.hidden, self.mu, self.logvar = nn.Linear(784, 400), nn.Linear(400, latent_dim), nn.Linear(400, latent_dim)

    def forward(self, x):
        h = self.hidden(x.flatten(1)).sin()
        return self.mu(h), self.logvar(h)


STRANGE = [  # mistakes that nobody has entered into the table
    ("to_images", lambda pixels: pixels.unsqueeze(1).float() / 255 + 0.001),
    ("to_images", lambda pixels: (pixels.unsqueeze(1) > 127).float()),
    ("Encoder", Sideways),
    ("reparameterize", lambda mu, logvar: mu + (0.4 * logvar).exp() * torch.randn_like(mu)),
    ("reparameterize", lambda mu, logvar: mu + (0.5 * logvar).exp() * 3**0.5 * (2 * torch.rand_like(mu) - 1)),
    ("reparameterize", lambda mu, logvar: mu + (-0.5 * logvar).exp() * torch.randn_like(mu)),
    ("reparameterize", lambda mu, logvar: (mu + (0.5 * logvar).exp()) * torch.randn_like(mu)),
    ("reparameterize", lambda mu, logvar: mu + (0.5 * logvar.detach()).exp() * torch.randn_like(mu)),
    ("kl_divergence", lambda mu, logvar: -0.5 * (1 + 2 * logvar - mu**2 - (2 * logvar).exp()).sum(1)),
    ("kl_divergence", lambda mu, logvar: 0.5 * (logvar - 1 + (1 + mu**2) / logvar.exp()).sum(1)),
    ("kl_divergence", lambda mu, logvar: -0.7 * (1 + logvar - mu**2 - logvar.exp()).sum(1)),
    ("reconstruction_cost", lambda logits, x: (logits - x).abs().sum((1, 2, 3))),
    ("reconstruction_cost", lambda logits, x: -(x * F.logsigmoid(logits)).sum((1, 2, 3))),
    ("reconstruction_cost", lambda logits, x: F.binary_cross_entropy_with_logits(x, logits, reduction="sum")),
    ("negative_elbo", lambda model, x: sum(model.terms(x)).mean() * 1.01),
    ("evaluate", lambda model, x, batch_size: 3.0),
    ("evaluate", lambda model, x, batch_size: sum(model.loss(batch).item() for batch in x.split(batch_size))),
    ("evaluate", lambda model, x, batch_size: model.terms(x)[0].mean().item()),
    ("generate", lambda model, n, generator: model.decoder(3 * torch.randn(n, 3, generator=generator)).sigmoid()),
    ("codes", lambda model, x: 0.3 * model.encoder(x)[0]),
    ("picture", lambda model, z1, z2: torch.zeros(28, 28)),
]


@pytest.mark.parametrize(("name", "version"), STRANGE)
def test_an_unknown_mistake_is_found_and_nobody_is_accused(name, version, names, capsys):
    checks = names["checks"]
    with pytest.raises(checks.NotYetError) as raised:
        exec(after_hole(name), names | {name: version})
    assert str(raised.value).splitlines()[3:] == [UNKNOWN]
    assert not [m.name for m in checks.mistakes() if m.hint in str(raised.value)]
    checks.hint()
    assert capsys.readouterr().out.startswith("No known mistake gives these numbers.")


def test_two_mistakes_that_explain_a_number_equally_well_are_both_left_unsaid(names):
    checks = names["checks"]
    known = checks.KNOWN["kl_divergence"]
    wrong, _, sharper = known["sign"]
    known["its twin"] = wrong, "another hint", sharper
    try:
        with pytest.raises(checks.NotYetError) as raised:
            checks.divergence(wrong)
    finally:
        del known["its twin"]
    assert str(raised.value).splitlines()[3:] == [UNKNOWN]


class Reshaped(Sideways):
    """An encoder that cannot run, for another reason than the one in the table."""

    def forward(self, x):
        return super().forward(x.view(784, -1))


def test_an_error_of_the_students_own_is_shown_as_it_is(names, capsys):
    with pytest.raises(AttributeError, match="no_such_thing"):
        names["checks"].divergence(lambda mu, logvar: mu.no_such_thing)
    with pytest.raises(RuntimeError, match="4 and 784") as raised:
        names["checks"].encoder(Reshaped)
    lines = raised.value._render_traceback_()
    assert [line.split(",")[0] for line in lines[:2]] == ["in forward"] * 2
    assert lines[2:] == [f"RuntimeError: {raised.value}"]
    with pytest.raises(RuntimeError, match="numpy"):  # at a gradient, after the draws were right
        names["checks"].reparameterization(lambda mu, logvar: by_torch(mu, torch.from_numpy(logvar.numpy())))
    names["checks"].hint()
    assert capsys.readouterr().out.startswith("The check stopped at an error in your own lines")


def test_a_score_lies_between_the_entropy_and_even_odds(solved):
    checks, x = solved["checks"], solved["x_test"]
    for value, place in [(20.0, "below the floor"), (600.0, "above even odds")]:
        with pytest.raises(checks.NotYetError, match=place):
            checks.score(value, x)


def test_checks_leave_the_random_numbers_as_they_were(names):
    torch.manual_seed(3), np.random.seed(3)  # noqa: NPY002
    exec("\n".join(after_hole(name) for name in HOLES if HOLES[name]), names)
    drawn = torch.rand(1).item(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(3), np.random.seed(3)  # noqa: NPY002
    assert drawn == (torch.rand(1).item(), np.random.rand())  # noqa: NPY002


def test_the_sheet_carries_all_that_it_needs(student, handed_out):
    nodes = [node for source in code_of(student) for node in ast.walk(ast.parse(source))]
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    foreign = {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names) - {"IPython"}
    colab = cells_of(handed_out("student/colab"))
    first = code_of(colab)[0]
    floors = [Requirement(text) for text in re.findall(r'"(\S+)"', first)]
    assert first.splitlines()[1].startswith("%pip install --quiet ")
    assert {"PIL" if floor.name == "pillow" else floor.name for floor in floors} == foreign
    assert {spec.operator for floor in floors for spec in floor.specifier} == {">="}
    assert all(floor.specifier.contains(metadata.version(floor.name)) for floor in floors)
    assert [cell for cell in colab if cell[1] != first] == student


def test_nobody_gets_what_is_not_theirs(student, solution, teacher):
    hidden = ["Model answer", "Teacher's page", "Marking scheme"]
    for cells in (student, solution):
        assert not [text for text in hidden if text in prose_of(cells)]
        assert not re.findall(r"\[\[/?(?:student|assert|remove|imports)", "".join(code_of(cells)))
    assert all(text in prose_of(teacher) for text in hidden)
    for name in HOLES:
        assert "# Solution (" in defining(solution, name)[0]
        assert "raise NotImplementedError" not in defining(solution, name)[0]


def test_two_hours_and_twenty_marks(teacher):
    prose = prose_of(teacher)
    rows = re.findall(r"(?m)^\| (\d) [^|]+\|[^|]+\| (\d+) \| ([\d½]+) \|(?: (\d))? ?\|$", prose)
    marks = [(int(code.replace("½", "") or 0) + 0.5 * ("½" in code), int(words or 0)) for *_, code, words in rows]
    minutes = [int(minutes) for _, minutes, _, _ in rows]
    assert [int(part) for part, *_ in rows] == list(range(9))
    assert (sum(minutes), sum(code for code, _ in marks), sum(words for _, words in marks)) == (120, 12, 8)
    titles = re.findall(r"(?m)^## (\d)\. .+\((\d+) minutes\)$", prose)
    assert [(int(part), int(minutes)) for part, minutes in titles] == list(enumerate(minutes))
    questions, answers = (re.findall(rf"(?m)^\*\*{word} (\d)", prose) for word in (r"Question", r"Model answer"))
    assert questions == answers == list("12345678")


DIGIT = """image => {  // the grey levels of the 28 by 28 squares to the right
    const canvas = new OffscreenCanvas(580, 280).getContext("2d");
    canvas.drawImage(image, 0, 0);
    const pixels = canvas.getImageData(300, 0, 280, 280).data;
    return Array.from({ length: 784 }, (_, i) => pixels[4 * (280 * (5 + 10 * Math.floor(i / 28)) + 5 + 10 * (i % 28))]);
}"""


def test_the_sliders_decode_in_jupyterlab_by_the_model_just_trained(browser, solved, handed_out, tmp_path):
    sheet = json.loads(handed_out("solution/local"))
    cells = [cell for cell in sheet["cells"] if cell["cell_type"] == "code"]
    cells[0]["source"].append("\nFAST, N_TRAIN, N_TEST, N_EPOCHS = True, 512, 256, 1")
    cells[-1]["source"].insert(0, 'torch.save(model_2d.state_dict(), "model.pt")\n')
    text = json.dumps(sheet).replace('CHOICE = {\\"dimension\\"}', "CHOICE = set()")
    (tmp_path / "vae.ipynb").write_text(text, encoding="utf-8")
    (tmp_path / "data").symlink_to(paths.DATA)
    with jupyter_lab(tmp_path) as address, opened(browser) as page:
        page.goto(f"{address}/lab/tree/vae.ipynb?reset")
        page.get_by_text("| Idle").wait_for(timeout=120_000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
        handles, picture = page.locator(".noUi-handle"), page.locator("img.widget-image, .widget-image img")
        handles.first.wait_for(timeout=300_000)
        model = solved["mlp_vae"](2)
        model.load_state_dict(torch.load(tmp_path / "model.pt"))
        seen = []
        for handle, key in [(0, None), (0, "ArrowRight"), (1, "ArrowLeft")]:
            if key is not None:
                before = picture.get_attribute("src")
                handles.nth(handle).focus()
                for _ in range(10):
                    page.keyboard.press(key)
                page.wait_for_function("([image, old]) => image.src !== old", arg=[picture.element_handle(), before])
            page.get_by_text("| Idle").wait_for()
            page.wait_for_timeout(500)  # the last of several pictures
            z = [float(text.replace("−", "-")) for text in page.locator(".widget-readout").all_text_contents()]
            expected = 255 * (1 - solved["picture"](model, *z).flatten())
            assert (torch.tensor(picture.evaluate(DIGIT)) - expected).abs().max() <= 1.01
            seen.append(tuple(z))
        assert seen[0] == (0, 0)
        assert seen[1][0] > 0
        assert seen[2][1] < 0
