"""What is known about the methods of the paper, once: for the workflow, the figures and tests."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """script: that computes it. place: the column of its results that says where in a layer it looked.

    there, used: its headline figures, as columns of results.csv, and what figures call them: is the variable there, and
    does the model use it? `accuracy_lost` is the untouched model's accuracy less that after the intervention,
    `random_accuracy_lost` less the mean after its random control.
    """

    script: str
    place: str
    there: dict[str, str]
    used: dict[str, str]


PROBE_USED = "counterfactual_predicts_cf_label"
METHODS = {  # by the folder of configs and of results
    "circuit_probing": Method("circuit_probing.py", "operation", {"knn_test_acc": "circuit, nearest neighbors"},
                              {"accuracy_lost": "circuit ablated: accuracy lost",
                               "random_accuracy_lost": "as many random neurons: accuracy lost"}),
    "linear_probing": Method("probing.py", "residual_location", {"test_acc": "linear probe"},
                             {PROBE_USED: "linear probe's counterfactual embedding"}),
    "nonlinear_probing": Method("probing.py", "residual_location", {"test_acc": "MLP probe"},
                                {PROBE_USED: "MLP probe's counterfactual embedding"}),
    "amnesic": Method("amnesic_probing.py", "residual_location", {
        "test_pre_erasure_probe_acc": "linear probe, before LEACE",
        "same_test_pre_erasure_probe_acc": "linear probe, before LEACE",
        "heldout_pre_erasure_decodability": "linear probe, before LEACE"}, {"accuracy_lost": "LEACE: accuracy lost"}),
    "DAS": Method("DAS.py", "location", {}, {"interchange_intervention_acc": "DAS: interchange accuracy"}),
}
PLACES = tuple(dict.fromkeys(method.place for method in METHODS.values()))
COMPONENT_OF = {"attn": "attn", "mlp": "mlp", "resid_mid": "attn", "resid_post": "mlp", "attn_out": "attn",
                "mlp_out": "mlp"}  # the sublayer that writes to a site

# the published names of what an ablation does, by condition of ablations.csv; {} stands for the evaluation set
ABLATION_COLUMNS = {"full": "vanilla_acc_{}", "circuit": "ablated_acc_{}", "random": "random_ablated_acc_{}"}
# the untouched model's accuracy, and that after the intervention, in the tables of the methods that have both
BEFORE_AND_AFTER = (("vanilla_acc_test", "ablated_acc_test"), ("vanilla_acc_same", "ablated_acc_same"),
                    ("test_vanilla_acc", "test_acc"), ("same_test_vanilla_acc", "same_test_acc"))
