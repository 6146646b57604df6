"""Column names, types and units of every table that passes between the stages.

Units stand in the names where a number travels alone (kelvin, ev). Structures are pymatgen's JSON. Energies are in
eV, k points in fractional coordinates of the reciprocal primitive cell.
"""

import pyarrow as pa

_structure = pa.field("structure", pa.string())
_strings = pa.list_(pa.string())
_numbers = pa.list_(pa.float32())

SUPERCONDUCTORS = pa.schema(
    [
        pa.field("formula", pa.string(), nullable=False),  # normalised: elements by electronegativity, reduced amounts
        pa.field("tc_kelvin", pa.float64(), nullable=False),  # mean of the reports; 0 for a measured absence
        pa.field("tc_std_kelvin", pa.float64(), nullable=False),  # spread of the reports, 0 for one report
        pa.field("lowest_kelvin", pa.float64()),  # measured without superconductivity down to here; null if unknown
        pa.field("tc_definitions", _strings),  # recommended, zero resistance, midpoint, …; empty where none is given
        pa.field("reports", pa.int32(), nullable=False),
        pa.field("year_first", pa.int32()),
        pa.field("references", _strings),
        pa.field("family", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("source_rows", pa.list_(pa.int32()), nullable=False),  # rows of the source file, counted from 1
    ]
)

UNDER_PRESSURE = pa.schema(
    [
        pa.field("formula", pa.string(), nullable=False),  # as in SUPERCONDUCTORS
        pa.field("tc_kelvin", pa.float64(), nullable=False),  # of one report; 0 for a measured absence
        pa.field("lowest_kelvin", pa.float64()),
        pa.field("pressure", pa.string(), nullable=False),  # as the source gives it
        pa.field("pressure_gpa", pa.float64()),  # null where the source names no unit
        pa.field("tc_definition", pa.string()),
        pa.field("year", pa.int32()),
        pa.field("reference", pa.string()),
        pa.field("family", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("source_row", pa.int32(), nullable=False),
    ]
)

CRYSTALS = pa.schema(
    [
        pa.field("crystal_id", pa.string(), nullable=False),
        pa.field("formula", pa.string(), nullable=False),
        pa.field("space_group", pa.string(), nullable=False),
        pa.field("sites", pa.int32(), nullable=False),  # of the standardised primitive cell
        pa.field("ordered", pa.bool_(), nullable=False),
        pa.field("energy_above_hull_ev", pa.float64()),  # per atom; null where the source does not say
        pa.field("crystal_source", pa.string(), nullable=False),
        pa.field("reference", pa.string()),
        pa.field("licence", pa.string()),  # null where the source does not say
        _structure,
    ]
)

FETCHED_CRYSTALS = pa.schema(  # what a database answered; query and date stand in the file's metadata
    [
        pa.field("crystal_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # json (pymatgen's) or optimade (the entry's attributes)
        pa.field("text", pa.string(), nullable=False),
        pa.field("energy_above_hull_ev", pa.float64()),  # per atom
        pa.field("band_gap_ev", pa.float64()),
        pa.field("theoretical", pa.bool_()),  # never made in a laboratory, as far as the database knows
        pa.field("crystal_source", pa.string(), nullable=False),
        pa.field("reference", pa.string()),
        pa.field("licence", pa.string()),
    ]
)

MATCHES = pa.schema(
    [
        pa.field("formula", pa.string(), nullable=False),  # the measured composition, as in SUPERCONDUCTORS
        pa.field("tc_kelvin", pa.float64(), nullable=False),
        pa.field("tc_std_kelvin", pa.float64(), nullable=False),
        pa.field("year_first", pa.int32()),
        pa.field("family", pa.string(), nullable=False),
        pa.field("crystal_id", pa.string(), nullable=False),
        pa.field("crystal_source", pa.string(), nullable=False),
        pa.field("match", pa.string(), nullable=False),  # exact, similar or doped
        pa.field("difference", pa.float64(), nullable=False),  # R of 3DSC
        _structure,  # with the doping applied: occupancies may be below 1
    ]
)

ORDERED = pa.schema(
    [
        pa.field("material_id", pa.string(), nullable=False),
        pa.field("parent_id", pa.string(), nullable=False),  # the crystal_id it was made from
        pa.field("formula", pa.string(), nullable=False),  # of the ordered cell
        pa.field("supercon_formula", pa.string()),  # the composition whose Tc it carries; null: nothing measured
        pa.field("tc_kelvin", pa.float64()),  # null: nothing measured, a crystal to screen
        pa.field("year_first", pa.int32()),
        pa.field("family", pa.string()),
        pa.field("match", pa.string()),
        pa.field("space_group", pa.string(), nullable=False),
        pa.field("sites", pa.int32(), nullable=False),
        pa.field("ewald_energy_ev", pa.float64()),  # of the kept arrangement; null where nothing had to be ordered
        pa.field("supercell", pa.list_(pa.int32()), nullable=False),  # 9 numbers, row by row
        pa.field("composition_error", pa.float64(), nullable=False),  # R between asked-for and reached composition
        pa.field("structure_hash", pa.string(), nullable=False),
        _structure,
    ]
)

BANDS = pa.schema(
    [
        pa.field("material_id", pa.string(), nullable=False),
        pa.field("formula", pa.string(), nullable=False),
        pa.field("chemical_system", pa.string(), nullable=False),
        pa.field("space_group", pa.string(), nullable=False),
        pa.field("sites", pa.int32(), nullable=False),
        _structure,
        pa.field("structure_hash", pa.string(), nullable=False),
        pa.field("kpoints", pa.list_(pa.list_(pa.float64())), nullable=False),  # [k, 3] fractional, irreducible
        pa.field("weights", pa.list_(pa.float64()), nullable=False),  # [k], sum 1
        pa.field("grid", pa.list_(pa.int32()), nullable=False),  # divisions of the full Γ-centred grid
        pa.field("energies", pa.list_(pa.list_(_numbers)), nullable=False),  # [spin, band, k] eV, absolute
        pa.field("efermi", pa.float64(), nullable=False),  # eV
        pa.field("band_gap_ev", pa.float64(), nullable=False),  # 0 for a metal
        pa.field("electrons", pa.float64()),  # valence electrons a cell
        pa.field("magnetic_moment", pa.float64()),  # Bohr magnetons a cell
        pa.field("total_energy_ev", pa.float64()),
        pa.field("dos_energies", _numbers),  # eV relative to E_F
        pa.field("dos_s", _numbers),  # states per eV and cell, both spins
        pa.field("dos_p", _numbers),
        pa.field("dos_d", _numbers),
        pa.field("engine", pa.string(), nullable=False),
        pa.field("engine_version", pa.string(), nullable=False),
        pa.field("engine_settings", pa.string(), nullable=False),  # JSON
        pa.field("pseudopotentials", pa.string()),  # names of the data sets, by element
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("bands_hash", pa.string(), nullable=False),  # of structure, k points, energies and E_F
    ]
)

GRID_INDEX = pa.schema(
    [
        pa.field("material_id", pa.string(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),  # first index into energies.zarr
        pa.field("parent_id", pa.string(), nullable=False),
        pa.field("formula", pa.string(), nullable=False),
        pa.field("supercon_formula", pa.string()),
        pa.field("tc_kelvin", pa.float64()),  # null: nothing measured
        pa.field("chemical_system", pa.string(), nullable=False),
        pa.field("year_first", pa.int32()),
        pa.field("family", pa.string()),
        pa.field("band_gap_ev", pa.float64(), nullable=False),
        pa.field("crossing_bands", pa.int32(), nullable=False),  # of the 18, how many cross E_F on the grid
        pa.field("first_band", pa.int32(), nullable=False),  # channel of the first real band; above 0 where padded
        pa.field("real_bands", pa.int32(), nullable=False),
        pa.field("error_ev", pa.float64()),  # estimated rms error of the interpolation near E_F; null: none was needed
        pa.field("bands_hash", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),  # of the float32 grid's bytes
    ]
)

CURVES = pa.schema(
    [
        pa.field("part", pa.string(), nullable=False),  # random-0, ensemble-1
        pa.field("epoch", pa.int32(), nullable=False),
        pa.field("loss", pa.float64(), nullable=False),  # mean over the epoch
        pa.field("validation_loss", pa.float64()),  # of what the part does not learn from; null: not asked then
        pa.field("learning_rate", pa.float64(), nullable=False),
    ]
)

STAR_BANDS = pa.schema(
    [
        pa.field("position", pa.int64(), nullable=False),  # as in GRID_INDEX
        pa.field("first_band", pa.int32(), nullable=False),
        pa.field("step_ev", pa.float64(), nullable=False),  # unit of the coefficients
        pa.field("rotations", pa.list_(pa.int8()), nullable=False),  # (n_rotations, 3, 3), on lattice vectors
        pa.field("stars", pa.list_(pa.int16()), nullable=False),  # (n_stars, 3), a lattice vector of each
        pa.field("coefficients", pa.list_(pa.int32()), nullable=False),  # (n_bands, n_stars), steps relative to E_F
    ]
)

CANDIDATES = pa.schema(
    [
        pa.field("rank", pa.int32()),  # 1 is best; null for known materials and abstentions
        pa.field("material_id", pa.string(), nullable=False),
        pa.field("formula", pa.string(), nullable=False),
        pa.field("space_group", pa.string(), nullable=False),
        pa.field("tc_kelvin", pa.float64()),  # BNAS, mean of ensemble and images
        pa.field("tc_low_kelvin", pa.float64()),  # interval of stated coverage
        pa.field("tc_high_kelvin", pa.float64()),
        pa.field("tc_image_spread_kelvin", pa.float64()),  # over the 24 images; null where fewer were asked about
        pa.field("images", pa.int32()),  # that BNAS was asked about, 1 or 24; null for a held-out prediction
        pa.field("tc_origin", pa.string(), nullable=False),  # ensemble; out-of-fold or in-sample if trained on
        pa.field("probability", pa.float64()),  # S2SNet, calibrated
        pa.field("probability_low", pa.float64()),
        pa.field("probability_high", pa.float64()),
        pa.field("probability_origin", pa.string(), nullable=False),  # as tc_origin
        pa.field("s2snet_tc_kelvin", pa.float64()),  # S2SNet, from the crystal alone; null where it learnt none
        pa.field("agree", pa.bool_()),  # both networks say superconductor, or both say not
        pa.field("distance", pa.float64(), nullable=False),  # from the training set, in its own spread; above 1 is far
        pa.field("abstain", pa.bool_(), nullable=False),
        pa.field("known", pa.string(), nullable=False),  # exact, similar, doped (3DSC's classes) or none
        pa.field("known_formula", pa.string()),
        pa.field("known_tc_kelvin", pa.float64()),
        pa.field("nearest_formula", pa.string()),  # nearest measured composition
        pa.field("band_gap_ev", pa.float64(), nullable=False),
        pa.field("energy_above_hull_ev", pa.float64()),  # per atom; null where the source does not say
        pa.field("theoretical", pa.bool_()),  # never made, as far as the source knows; null where it does not say
        pa.field("hazards", _strings),  # toxic or radioactive elements
        pa.field("score", pa.float64()),  # what the rank follows: probability x tc_kelvin
        pa.field("bnas_version", pa.string()),
        pa.field("s2snet_version", pa.string()),
        _structure,
    ]
)

PREDICTIONS = pa.schema(
    [
        pa.field("split", pa.string(), nullable=False),
        pa.field("fold", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),  # the network or a baseline
        pa.field("material_id", pa.string(), nullable=False),
        pa.field("formula", pa.string(), nullable=False),
        pa.field("tc_kelvin", pa.float64()),  # measured; null where only the class is known
        pa.field("tc_predicted_kelvin", pa.float64()),  # null for a classifier
        pa.field("superconductor", pa.bool_()),  # measured
        pa.field("probability", pa.float64()),  # of being a superconductor; null for a regression
    ]
)

FOLDS = pa.schema(
    [
        pa.field("split", pa.string(), nullable=False),
        pa.field("fold", pa.string(), nullable=False),
        pa.field("material_id", pa.string(), nullable=False),
        pa.field("side", pa.string(), nullable=False),  # train or test
    ]
)

BENCHMARK = pa.schema(  # a row is a score of a model on a split
    [
        pa.field("split", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),  # that gives the model; several for the baselines
        pa.field("score", pa.string(), nullable=False),  # roc_auc, accuracy or brier
        pa.field("folds", pa.int32(), nullable=False),
        pa.field("mean", pa.float64()),  # over the folds
        pa.field("spread", pa.float64()),  # standard deviation over the folds; null for one fold
        pa.field("pooled", pa.float64()),  # over all held-out predictions together
        pa.field("low", pa.float64()),  # 95 % bootstrap interval over materials
        pa.field("high", pa.float64()),
        pa.field("gain", pa.float64()),  # pooled, above the forest on the same materials
        pa.field("gain_low", pa.float64()),  # 95 % interval of a paired bootstrap
        pa.field("gain_high", pa.float64()),
    ]
)
BENCHMARK_RELIABILITY = pa.schema(  # a row is a tenth of the probabilities of a model on a split
    [
        pa.field("split", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("predicted", pa.float64(), nullable=False),  # mean held-out probability, 0 to 1
        pa.field("observed", pa.float64(), nullable=False),  # share that superconducts
        pa.field("materials", pa.int64(), nullable=False),
        pa.field("low", pa.float64(), nullable=False),  # 95 % interval of the share (Wilson)
        pa.field("high", pa.float64(), nullable=False),
    ]
)

PRETRAINING_ROLES = pa.schema(
    [
        pa.field("material_id", pa.string(), nullable=False),
        pa.field("role", pa.string(), nullable=False),  # pretrain, or held-out for the error that is told
    ]
)

LEAKAGE = pa.schema(  # a row is a fold; counts are test materials, null where the data do not show it
    [
        pa.field("split", pa.string(), nullable=False),
        pa.field("fold", pa.string(), nullable=False),
        pa.field("train", pa.int32(), nullable=False),  # materials
        pa.field("test", pa.int32(), nullable=False),
        pa.field("materials", pa.int32()),  # that are training materials
        pa.field("parents", pa.int32()),  # whose parent crystal is in the training
        pa.field("doped_parents", pa.int32()),  # of these: only with other compositions
        pa.field("compositions", pa.int32()),  # whose composition is in the training, however spelled
        pa.field("respelled", pa.int32()),  # of these: only with another text
        pa.field("rounded", pa.int32()),  # others, whose composition is there in other decimals
        pa.field("polymorphs", pa.int32()),  # of the compositions: only with other parents
        pa.field("merged_polymorphs", pa.int32()),  # of these: with the same label
        pa.field("systems", pa.int32()),  # whose chemical system is in the training
        pa.field("relatives", pa.int32()),  # of which any of this is true
        pa.field("pretraining", pa.int32()),  # that are crystals of the pre-training
        pa.field("unpredicted", pa.int32()),  # without a prediction by some model that was scored
        pa.field("stretches", pa.int32()),  # of test materials along the file; null where years or families split
        pa.field("expected_stretches", pa.float64()),  # of as many drawn by lot
        pa.field("order_chance", pa.float64()),  # that those drawn by lot are as far off
        pa.field("problem", pa.string()),  # what the settings do not allow
    ]
)

S2S = pa.schema(
    [
        pa.field("material_id", pa.string(), nullable=False),
        pa.field("parent_id", pa.string(), nullable=False),
        pa.field("formula", pa.string(), nullable=False),
        pa.field("supercon_formula", pa.string()),  # the composition that was measured
        pa.field("chemical_system", pa.string(), nullable=False),
        pa.field("superconductor", pa.int8()),  # 1 or 0; null in pre-training, which knows no classes
        pa.field("label_source", pa.string(), nullable=False),  # measured (Tc), bound (none above it), unlabelled
        pa.field("role", pa.string(), nullable=False),  # train or pretrain
        pa.field("reason", pa.string(), nullable=False),  # why it is in, and why so
        pa.field("tc_kelvin", pa.float64()),  # of a superconductor
        pa.field("lowest_kelvin", pa.float64()),  # of a bound
        pa.field("family", pa.string()),
        pa.field("year_first", pa.int32()),
        pa.field("sites", pa.int32(), nullable=False),
        pa.field("structure_hash", pa.string(), nullable=False),
        _structure,
    ]
)

DENSITIES_BY_TC = pa.schema(
    [
        pa.field("group", pa.string(), nullable=False),  # range of the measured Tc, or predicted above 10 K
        pa.field("materials", pa.int32(), nullable=False),  # whose mean it is
        pa.field("energy_ev", pa.float64(), nullable=False),  # relative to E_F
        pa.field("s", pa.float64()),  # states per eV and atom, both spins; null where no material's energies reach
        pa.field("p", pa.float64()),
        pa.field("d", pa.float64()),
    ]
)

TIME_MACHINE = pa.schema(  # a row is a year, what the models read, the pool, a model, and the length of its list
    [
        pa.field("year", pa.int32(), nullable=False),  # trained on what was reported before it
        pa.field("inputs", pa.string(), nullable=False),  # crystals, or bands: materials that have these
        pa.field("pool", pa.string(), nullable=False),  # all, or new systems: without chemical systems of the training
        pa.field("model", pa.string(), nullable=False),
        pa.field("top", pa.int32(), nullable=False),  # length of the list
        pa.field("hits", pa.int32(), nullable=False),  # of the list, reported as superconductors later
        pa.field("expected", pa.float64(), nullable=False),  # hits of a draw by lot
        pa.field("enrichment", pa.float64(), nullable=False),  # hits / expected
        pa.field("enrichment_low", pa.float64(), nullable=False),  # 95 % bootstrap over the pool
        pa.field("enrichment_high", pa.float64(), nullable=False),
        pa.field("enrichment_largest", pa.float64(), nullable=False),  # of a perfect list
        pa.field("p_value", pa.float64(), nullable=False),  # hypergeometric
        pa.field("pool_materials", pa.int32(), nullable=False),
        pa.field("pool_found", pa.int32(), nullable=False),
        pa.field("trained", pa.int32(), nullable=False),  # materials
        pa.field("trained_superconductors", pa.int32(), nullable=False),
        pa.field("background", pa.int32(), nullable=False),  # of the trained, drawn by lot from what was not reported
    ]
)

TIME_MACHINE_LISTS = pa.schema(  # a row is a place in the list of a model for a year, over the whole pool
    [
        pa.field("year", pa.int32(), nullable=False),
        pa.field("inputs", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("material_id", pa.string(), nullable=False),
        pa.field("formula", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),  # kelvin, probability, or their product
        pa.field("year_found", pa.int32()),  # first report as a superconductor; null: none is known
    ]
)

PAIRS = pa.schema(  # a row is a compound of the BNAS paper's Table I and a grid of it, or one without a grid
    [
        pa.field("pair", pa.int32(), nullable=False),
        pa.field("formula", pa.string(), nullable=False),  # as printed
        pa.field("space_group", pa.string(), nullable=False),  # as printed
        pa.field("pressure_gpa", pa.float64(), nullable=False),
        pa.field("superconductor", pa.bool_(), nullable=False),  # measured
        pa.field("tc_measured_kelvin", pa.float64()),  # null: measured without superconductivity
        pa.field("tc_published_kelvin", pa.float64(), nullable=False),  # predicted in the paper
        pa.field("published_bound", pa.bool_(), nullable=False),  # true: less than that
        pa.field("found", pa.bool_(), nullable=False),  # whether there is a grid
        pa.field("material_id", pa.string()),
        pa.field("collection", pa.string()),  # null: the workspace's own grids
        pa.field("material_space_group", pa.string()),  # null: no crystal is stored
        pa.field("tc_kelvin", pa.float64()),  # BNAS, as in CANDIDATES
        pa.field("tc_low_kelvin", pa.float64()),
        pa.field("tc_high_kelvin", pa.float64()),
        pa.field("tc_image_spread_kelvin", pa.float64()),
        pa.field("tc_held_out_kelvin", pa.float64()),  # by networks that had not seen it; null: it was not trained on
        pa.field("trained_on", pa.bool_()),  # the material or its composition; null: not predicted
        pa.field("bnas_version", pa.string(), nullable=False),
        pa.field("note", pa.string()),  # what is not certain, or missing
    ]
)

TRIALS = pa.schema(
    [
        pa.field("trial", pa.int32(), nullable=False),  # from 0
        pa.field("state", pa.string(), nullable=False),  # COMPLETE, PRUNED or FAIL
        pa.field("loss", pa.float64()),  # validation mean squared error of ln(Tc + 1); of a pruned trial the last
        pa.field("published_loss", pa.float64()),  # where the trial is a point of the paper's Table II
        pa.field("epochs", pa.int32(), nullable=False),  # that were run
        pa.field("depth", pa.int32(), nullable=False),
        pa.field("embed_dim", pa.int32(), nullable=False),
        pa.field("heads", pa.int32(), nullable=False),
        pa.field("mlp_dim", pa.int32(), nullable=False),
        pa.field("embed_dropout", pa.float64(), nullable=False),
        pa.field("dropout", pa.float64(), nullable=False),
    ]
)

IMPORTANCE = pa.schema(
    [
        pa.field("parameter", pa.string(), nullable=False),  # a column of TRIALS
        pa.field("importance", pa.float64(), nullable=False),  # share of the variance of the loss
    ]
)

REJECTED = pa.schema(
    [
        pa.field("item", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("retryable", pa.bool_(), nullable=False),  # true where the same input may pass another time
    ]
)
