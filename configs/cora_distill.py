"""A graph attention network distilled into an MLP that needs no graph: the fields of papers, from words and citations.

    python -m kdjax.launch --config=configs/cora_distill.py                    a generated graph, nothing to download
    python -m kdjax.launch --config=configs/cora_distill.py:smoke              the same, tiny
    python -m kdjax.launch --config=configs/cora_distill.py:cora=DIR           Cora: the folder of cora.npz
    python -m kdjax.launch --config=configs/cora_distill.py:cora_labels=DIR    the student hears the labels too

GLNN (Zhang et al. 2022, arXiv 2110.08727): the teacher reads words and citations, the student words alone, and learns
what the teacher says of every node, of which 140 are labelled. It has more parameters, and yet it is the one that is
deployed: it answers for a paper without fetching whom that cites, and who cites those.

The generated graph, seed 0: GAT 0.926, MLP 0.926, the MLP without a teacher 0.515; half a minute of one core.

Cora, test accuracy over seeds 0 to 2, mean and standard deviation, each within 100 s on two cores that others used too:
GAT 0.818 ± 0.007, MLP 0.831 ± 0.007 (with labels 0.831 ± 0.013), the MLP without a teacher 0.568 ± 0.003. The paper has
GraphSAGE 0.793, its MLP 0.783, that MLP alone 0.590, of another split. Weight decay is what the student must do
without: with 5e-4 it stays at 0.73. The MLP alone gains from it, and with 5e-3 comes to 0.60 (one seed each). The
published weights of the GAT have 0.822:

    python -m convert pyg_gat --src gat_000000.pth --dst g.safetensors
    python -m kdjax.launch --config=configs/cora_distill.py:cora=DIR --mode=eval --stage=teacher --weights=g.safetensors
"""

from kdjax.config import ConfigError, Data, Experiment, Mesh, Model, Optim, Stage, Stop, Teacher, Term, nearest

VARIANTS = ("", "smoke", "cora", "cora_labels")
FIELDS = 7


def get_config(variant: str = "") -> Experiment:
    variant, _, folder = variant.partition("=")
    if variant not in VARIANTS:
        raise ConfigError(f"configs/cora_distill.py has no variant {variant!r}; {nearest(variant, VARIANTS[1:])}")
    smoke = variant == "smoke"
    data = papers(variant, folder or "data/cora")
    told = {"features": None, "num_classes": None}
    shared = {"task": "classification", "data": data, "stop": Stop(patience=100), "grad_norms_every": 0}
    shared |= {"epochs": 3 if smoke else 300 if variant else 120}  # of one step each: a batch is the whole graph

    teacher = Stage(
        title="GAT",
        model=Model("node_gat", **told),
        optim=Optim("adam", lr=5e-3, schedule="constant", weight_decay=5e-4, decay=((r".*", 1.0),)),
        **shared,
    )
    student = Stage(
        title="MLP, distilled",
        model=Model("node_mlp", **told),
        teachers={"gat": Teacher(stage="teacher")},
        terms={
            "ce": Term("ce", label="class", weight=0.1 if variant == "cora_labels" else 0.0),
            "soft": Term("kl", teacher="gat:logits", args={"temperature": 1.0}),
        },
        optim=Optim("adam", lr=1e-2, schedule="constant"),
        **shared,
    )
    stages = {"teacher": teacher, "student": student}
    return Experiment(name="cora_distill", stages=stages, mesh=Mesh(data=1), quick_compile=smoke)


def papers(variant: str, folder: str) -> Data:
    """A batch is the whole graph, of so many nodes."""
    if variant.startswith("cora"):
        return Data("cora", root=folder, num_classes=FIELDS, batch_size=2708)
    nodes, words = (320, 60) if variant == "smoke" else (1500, 500)
    return Data("citations", num_classes=FIELDS, batch_size=nodes, nodes=nodes, words=words)
