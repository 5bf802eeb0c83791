"""Fixed texts of a report: metrics and how to read them, captions of the figures."""

from __future__ import annotations

# key in the document, name on the page, how to read it
READING = (
    ("last", "Last", "Mean score over all tasks after the last one was learned. Higher is better."),
    ("last_bounded", "Last, bounded tasks", "Last without the tasks whose scores can exceed 100, so that these do not "
     "dominate the mean."),
    ("avg", "Avg", "For each task the mean of its scores from the moment it was learned; then the mean over tasks."),
    ("maa", "MAA", "After each lesson the mean over the tasks learned so far; then the mean over lessons."),
    ("mft", "MFT", "Mean score on each task right after it was learned, before it could be forgotten."),
    ("bwt_t_minus_1", "BWT", "Change of the scores from right after learning to the end, mean over all tasks but the "
     "last. Negative means forgotten."),
    ("forgetting", "Forgetting", "Best score on a task since it was learned minus its final score, mean over all tasks "
     "but the last. Lower is better."),
    ("fwt", "FWT", "Score on a task just before it is learned minus the zero-shot score. Positive means that earlier "
     "tasks helped."),
    ("routing_accuracy", "Routing accuracy", "Percentage of test items that were routed to the expert of their own "
     "task."),
    ("named_task_last", "Last, task named", "Last of the same model with the true task given instead of routing."),
    ("named_task_gap", "Gap to named task", "Last with the task named minus Last: the points lost to routing."),
    ("bwt_t_minus_1_named_task", "BWT, task named", "BWT with the task named: the part of forgetting that is due to "
     "the experts."),
    ("bwt_t_minus_1_routing", "BWT by routing", "BWT minus BWT with the task named: the part that is due to inputs of "
     "old tasks being routed elsewhere."),
)  # fmt: skip
FLOPS = (
    ("forward_base", "plain model"),
    ("forward_method", "with experts and gate"),
    ("locator_prefill", "second prefill for the locator"),
    ("total", "total"),
)
CAPTIONS = {
    "outcome": "One row a task: its score before training, right after its lesson and now, with the number now at the "
    "right. The upright mark is the score of always giving the most frequent answer. A line joins right after learning "
    "and now; its length is what was forgotten, or gained.",
    "accuracy_matrix": "Score on each task (columns) after each lesson (rows). Above the stepped line a task has "
    "not been learned yet; a column that gets paler downwards is forgotten. Hatched cells were not measured. The "
    "darkest shade stands for 100, or for the highest score where one exceeds 100.",
    "forgetting_curves": "Each colour is one task: hollow marks and dots before it is learned, solid from then on. A "
    "solid line that falls means forgetting. A mark is a measured score; there is no line across rows without one.",
    "routing_confusion": "Share and number of each task's test items (rows) routed to each task's expert (columns). "
    "Items on the diagonal were routed correctly; “unknown” counts items that the gate assigned to no task.",
    "expert_sizes": "Parameters beyond the frozen base: stored is what is needed to answer, archived what the run "
    "folder keeps, trained what the optimiser updated in the largest stage. Below, what each task added.",
    "growth": "Experts that each task (rows) added in each layer (columns): +1 for one, 0 for none. Shade and "
    "percentage are the share of the probing records' tokens that the router assigned to the probe; the first task is "
    "not probed. A second panel, where there is one, shows which earlier tasks' experts (rows) the tokens of the last "
    "probed task were assigned to. Where growth is by worth, shade and number are the loss per answer token that the "
    "probe saved in the layer (nats).",
    "expansion": "Benefit of a separate expert in each layer (columns) for each task (rows), measured after the task "
    "was learned. By loss: how much the loss falls when the fused experts of the layer are replaced with the task's "
    "own. By cka: dissimilarity of the layer's features to those under earlier tasks' experts. By probe: share of "
    "tokens that a router assigns to the task's expert rather than to earlier ones. Framed layers are expanded. The "
    "first task has no earlier one to be compared with.",
    "training_loss": "Loss per answer token against the training step, stage after stage (names above): faint as "
    "logged, bold as moving average over a fortieth of the stage.",
    "last_and_forgetting": "Bars are means over seeds, whiskers one standard deviation, dots single seeds.",
    "last_by_task": "Score of each task after the last lesson, one bar for each method.",
}  # fmt: skip
