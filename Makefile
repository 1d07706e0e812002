# The AMD kit. `make help` explains every target and variable.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON  ?= python3
VENV    ?= .venv
PROFILE ?= mini
PY      := $(VENV)/bin/python
SETUP   := $(VENV)/.setup-done
AMDLIB  := $(PY) -m amdlib

#? PROFILE mini (default: shapes, narrow networks, minutes on a CPU), bccd (BCCD, the same networks), small (a real data set), tenth (of COCO), paper (COCO)
#? DATA folder of the data set, for PROFILE=bccd, small (COCO, Pascal VOC, YOLO: docs/data.md), tenth and paper (COCO 2017)
#? SPLIT share that is trained on, such as 0.8, where DATA is not split; the rest is reported
#? SPLIT_SEED of that split; default: 0
#? NEGATIVES keep (images without a box are trained on too) or drop (left out everywhere); default: not trained on
#? DROP_BROKEN 1 leaves out images that cannot be read, by name
#? LAYOUT of DATA, where it fits several: coco, voc, yolo, cvat or csv
#? GROUP retinanet, reppoints or faster_rcnn; default: all three (one figure: the paper's); the zoo has gfl too
#? SEEDS seeds of the students, such as "0 1 2"; default: 0
#? SETTINGS of every run, such as "epochs=2 gpus=8 'backbone=a folder/r50.pth'"; README has all
#? METHOD a loss of your own, path/to/file.py:ClassName: a line more of each table
#? ARM how one-stage students of the methods start: alone, or inherit (the teacher's neck and head); default: the profile's
#? CONTROLS 1 shows the controls in tables too
#? CALIBRATED 1 weighs each method by the factor that make calibrate chose, instead of by the rule alone
#? TEACHERS fresh: train the teachers anew instead of taking the shipped ones
#? METHODS for calibrate, such as "amd mgd"; default: all that are compared
#? VALUES of the threshold phi, for reproduce-fig4; default: "0.5 0.7 0.9 1.0 1.1 1.3 1.5"
#? DEVICE cpu, cuda or cuda:N; default: a GPU where there is one
#? JOBS runs at once; default: one a GPU, or one a core (four at most) without a GPU
#? ON slurm: hand missing runs to it instead of training here; for status: ask its queue too (docs/cluster.md)
#? SLURM options of sbatch, for ON=slurm, such as "--partition=gpu --gres=gpu:8 --time=48:00:00"
#? FORCE 1 trains again what is done
#? WEIGHTS folder with published weights (teachers, ImageNet backbones), for PROFILE=tenth and paper
#? MIRRORS addresses or folders to look for published weights before their home
#? SKIP_TEACHER_CHECK 1 trains although a published teacher's mAP was not checked
#? WORKERS processes that load pictures, a GPU; changes no number
#? TENSORBOARD 1 writes what is logged for TensorBoard too
#? NAME of the notebook to execute, such as explore_masks
#? LAB words for jupyter lab, such as "--port 8889"
#? RUN name of the run to export, such as retinanet-amd-s0
#? ONNX 1 exports the run as ONNX too
#? MEASURE 1 has cost time a few steps of each row on this machine's GPU
#? SWITCHES 1 has cost compare the switches for speed, each alone and all together (MEASURE=1: time them)
#? ZOO 1 has bench measure a step of each method of the zoo instead, over the baseline's: time and memory
#? EXPLORATORY 1 has plan train the exploratory comparisons of docs/plan.md too
#? FIG table or figure, for why, such as fig4, table1 or significance
#? A results folder, for compare
#? B another one
#? COMMIT that made the records which attest is about; default: that of most
#? PYTHON interpreter for make setup, 3.11 or newer; default: python3
#? VENV folder of the virtual environment; default: .venv
#? CPU 1 asks for an environment without GPU packages: there is none yet, so it says why and changes nothing
#? PUBLIC folder of the public code, for make goldens (see tests/goldens/)
KNOWN := PROFILE DATA SPLIT SPLIT_SEED NEGATIVES DROP_BROKEN LAYOUT GROUP SEEDS SETTINGS METHOD ARM CONTROLS CALIBRATED \
         TEACHERS METHODS VALUES DEVICE JOBS ON SLURM FORCE WEIGHTS MIRRORS SKIP_TEACHER_CHECK WORKERS TENSORBOARD NAME LAB RUN \
         ONNX MEASURE SWITCHES ZOO EXPLORATORY FIG A B COMMIT PYTHON VENV CPU PUBLIC

# some login shells set a CPU of their own
ifeq ($(origin CPU),environment)
undefine CPU
endif
# a variable that is misspelled would go unnoticed
given   := $(foreach one,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(one)))),$(one)))
unknown := $(filter-out $(KNOWN),$(given))
$(if $(unknown),$(error unknown variable $(unknown); known are: $(KNOWN). Settings of a run go into SETTINGS="epochs=2"))
define newline


endef
$(foreach one,$(KNOWN),$(if $(findstring $(newline),$(value $(one))),$(error $(one) has a line break)))
# what only the environment sets is obeyed, and said
$(foreach one,$(KNOWN),$(if $(filter environment,$(firstword $(origin $(one)))),$(shell echo 'note: $(one) comes from the environment' >&2)))
unexport $(KNOWN)   # or make would expand them once more

# Values reach the program as they are, one argument each: neither make ($(value)) nor the shell ('...') looks into them.
# What is not given is not passed on, so that every default is written once, in amdlib.
quote = '$(subst ','\'',$(1))'
opt   = $(if $(value $(1)),$(2)=$(call quote,$(value $(1))))
flag  = $(if $(filter-out 0,$(value $(1))),$(2))
plain = $(if $(value $(1)),$(call quote,$(value $(1))))

WHERE     = $(call opt,PROFILE,--profile) $(call opt,DATA,--data) $(call opt,SPLIT,--split) \
            $(call opt,SPLIT_SEED,--split-seed) $(call opt,NEGATIVES,--negatives) \
            $(call flag,DROP_BROKEN,--drop-broken) $(call opt,LAYOUT,--layout)
SET       = $(call opt,SETTINGS,--settings) $(if $(value TEACHERS),--set=$(call quote,teachers=$(value TEACHERS)))
ASKED     = $(call opt,GROUP,--group) $(call opt,SEEDS,--seeds) $(call opt,VALUES,--values) \
            $(SET) $(call opt,METHOD,--method) $(call opt,ARM,--arm) \
            $(call flag,CONTROLS,--controls) $(call flag,CALIBRATED,--calibrated)
PUBLISHED = $(call opt,WEIGHTS,--weights) $(call opt,MIRRORS,--mirrors)
MEANS     = $(call opt,DEVICE,--device) $(call opt,JOBS,--jobs) $(PUBLISHED) $(call opt,WORKERS,--workers) \
            $(call flag,TENSORBOARD,--tensorboard) $(call flag,SKIP_TEACHER_CHECK,--skip-teacher-check)
HOW       = $(WHERE) $(ASKED) $(MEANS) $(call flag,FORCE,--force)

QUEUE     = $(call opt,ON,--on) $(call opt,SLURM,--slurm)
DO        = $(if $(value ON)$(value SLURM),batch,reproduce)

# tests on up to four cores, a file each
SPREAD   := -n auto --maxprocesses 4 --dist loadfile

.PHONY: help setup doctor list values data reproduce-all sweep-phi status bed calibrate plan compare verify keep teachers backbone weights \
        demo notebook report publish why explore lab export paper-dryrun cost bench families attest test test-fast test-browser test-slurm torture lint goldens lock clean always

help:  ## this text
	@echo 'The AMD kit: rerun "AMD: Adaptive Masked Distillation for Object Detection" (arXiv 2301.13538)'
	@echo; echo 'Targets:'
	@sed -nE -e 's/^([a-z0-9-]+):.*## (.*)/  \1|\2/p' -e 's/^#: ([a-z0-9-]+) /  \1|/p' $(MAKEFILE_LIST) | column -t -s '|'
	@echo; echo 'Variables (make TARGET NAME=value):'
	@sed -nE 's/^#\? ([A-Z_]+) /  \1|/p' $(MAKEFILE_LIST) | column -t -s '|'

setup: $(SETUP)  ## create the virtual environment from requirements.lock (every other target does so too)

$(SETUP): requirements.lock pyproject.toml $(if $(call flag,CPU,asked),always)
	@$(PYTHON) -I amdlib/setup_venv.py $(call quote,$(VENV))$(call flag,CPU, --cpu)

doctor: $(SETUP)  ## print versions, GPU, memory, disk, what is missing and how to mend it
	@$(AMDLIB) doctor

list: $(SETUP)  ## list every row with the paper's value, and every setting
	@$(AMDLIB) list

values: $(SETUP)  ## every value of the paper's experiments with its source
	@$(AMDLIB) values

data: $(SETUP)  ## prepare and check the data set of PROFILE
	@$(AMDLIB) data $(WHERE)

# Each trains what is missing, evaluates it, and shows it beside the paper's numbers.
#: reproduce-table1 Table I, the methods compared: train what is missing, evaluate, show it beside the paper's
#: reproduce-table2 Table II, what each part of AMD brings: RetinaNet
#: reproduce-table3 Table III, the same: RepPoints
#: reproduce-table4 Table IV, the same: Faster R-CNN
#: reproduce-table5 Table V, generation blocks
#: reproduce-table6 Table VI, position of the channel clue
#: reproduce-zoo the methods that the paper cites and reviewers ask for, in one table (docs/zoo.md); not part of reproduce-all
#: reproduce-fig1 Fig. 1, the teacher's attention with region scores
#: reproduce-fig3 Fig. 3, feature maps of teacher, baseline, FGD, MGD and AMD
#: reproduce-fig4 Fig. 4, mAP and mAR over phi (RepPoints, or GROUP), one executed notebook a value
#: reproduce-significance the comparisons that were planned, judged on the runs that are there; what seeds could show at all
reproduce-%: $(SETUP) always
	@$(AMDLIB) $(DO) $* $(HOW) $(QUEUE)

reproduce-all: $(SETUP)  ## every table and figure: train what is missing, execute every notebook, then the report
	@$(if $(value ON)$(value SLURM),$(AMDLIB) batch all $(HOW) $(QUEUE),code=0; $(AMDLIB) reproduce all $(HOW) || code=$$?; $(AMDLIB) report $(WHERE); exit $$code)

sweep-phi: reproduce-fig4  ## the same as reproduce-fig4, for the values VALUES

status: $(SETUP)  ## which runs are done, running, failed, stale or missing, and why
	@$(AMDLIB) status $(WHERE) $(ASKED) $(call opt,ON,--on)

bed: $(SETUP)  ## whether the test bed can tell methods apart: what must hold, spread over seeds, clipping, masks (bed.md)
	@$(AMDLIB) bed $(WHERE) $(call opt,GROUP,--group) $(SET) --write

calibrate: $(SETUP)  ## choose one factor on each method's weights, on validation pictures (GROUP, ARM, METHODS)
	@$(AMDLIB) calibrate $(WHERE) $(call opt,GROUP,--group) $(call opt,ARM,--arm) $(call opt,METHODS,--methods) $(call opt,SEEDS,--seeds) $(SET) $(MEANS) $(call flag,FORCE,--force)

plan: $(SETUP)  ## train what docs/plan.md asks for, in the order of its value, and judge it (mini: 80 runs of four to five minutes a core)
	@$(AMDLIB) plan $(WHERE) $(call opt,GROUP,--group) $(SET) $(MEANS) $(call flag,EXPLORATORY,--exploratory)

compare: $(SETUP)  ## set the results folders A and B side by side, such as of two machines
	@$(AMDLIB) compare $(WHERE) -- $(call plain,A) $(call plain,B)

verify: $(SETUP)  ## recompute every number from its detections, every hash from its file, every table from its records
	@$(AMDLIB) verify $(WHERE) $(call opt,JOBS,--jobs)

keep: $(SETUP)  ## put the records of all runs that count below results/<profile>/records/, to be committed
	@$(AMDLIB) keep $(WHERE)

teachers: $(SETUP)  ## train the teachers that the kit ships anew, below data/teachers/ (GROUP, SEEDS)
	@$(AMDLIB) teachers $(WHERE) $(call opt,GROUP,--group) $(call opt,SEEDS,--seeds) $(MEANS) $(call flag,FORCE,--force)

backbone: $(SETUP)  ## pre-train the small backbone that students start from, below data/teachers/
	@$(AMDLIB) pretrain $(WHERE)

weights: $(SETUP)  ## find or fetch the published weights of PROFILE=paper, and say where they are
	@$(AMDLIB) weights $(PUBLISHED)

demo: $(SETUP)  ## five minutes on two cores: from pictures to a row of Table I (00_start, which trains two short runs)
	@$(AMDLIB) notebook $(WHERE) $(MEANS) --page -- 00_start

notebook: $(SETUP)  ## execute the notebook NAME, with SETTINGS
	@$(AMDLIB) notebook $(WHERE) $(MEANS) $(if $(value SETTINGS),--set=$(call quote,settings=$(value SETTINGS))) -- $(call plain,NAME)

report: $(SETUP)  ## gather what is there in a static web site, results/<profile>/report/index.html
	@$(AMDLIB) report $(WHERE)

explore: $(SETUP)  ## write the mask explorer, one page for a browser: move phi, T and the level over test images (GROUP)
	@$(AMDLIB) explore $(WHERE) $(call opt,GROUP,--group)

publish: $(SETUP)  ## the report's front page as one HTML file that can be committed, results/<profile>/report.html; executed notebooks beside it
	@$(AMDLIB) report $(WHERE) --single

why: $(SETUP)  ## what stands behind the table or figure FIG: files, records, commits, machines, command
	@$(AMDLIB) why $(WHERE) -- $(call plain,FIG)

lab: $(SETUP)  ## open the notebooks in JupyterLab (LAB: words for it)
	@$(AMDLIB) lab -- $(foreach one,$(value LAB),$(call quote,$(one)))

export: $(SETUP)  ## write the detector of RUN as files for stock mmdet (ONNX=1: and as ONNX)
	@$(AMDLIB) export $(WHERE) $(call opt,METHOD,--method) $(call flag,ONNX,--onnx) -- $(call plain,RUN)

paper-dryrun: $(SETUP)  ## every row a few steps at the paper's architectures, with random weights (needs DATA)
	@$(AMDLIB) dryrun $(call opt,DATA,--data) $(call opt,JOBS,--jobs) $(call opt,DEVICE,--device)

cost: $(SETUP)  ## steps, measured seconds a step, memory and GPU-hours of each row (MEASURE=1 times them here)
	@$(AMDLIB) cost $(WHERE) $(SET) $(call flag,MEASURE,--measure) $(call flag,SWITCHES,--switches) $(call opt,DEVICE,--device)

bench: $(SETUP)  ## how near a step is to its parts, and the losses to their convolutions: ratios, measured side by side here
	@$(AMDLIB) bench $(WHERE) $(call opt,GROUP,--group) $(call opt,DEVICE,--device) $(call flag,ZOO,--zoo)

families: $(SETUP)  ## one distillation step with a detector of each of mmdet's families (docs/families.md; FORCE=1: all again)
	@$(AMDLIB) families $(call flag,FORCE,--again)

attest: $(SETUP)  ## prove that edited code gives the digits of the old, so that records count further (ten minutes on two cores)
	@$(AMDLIB) attest -- $(call plain,COMMIT)

test: $(SETUP)  ## all tests but the browser's (needs neither network nor GPU)
	$(PY) -m pytest $(SPREAD) -m 'not browser and not slurm'

test-fast: $(SETUP)  ## the tests that take seconds
	$(PY) -m pytest $(SPREAD) -m 'not slow and not browser and not slurm'

test-browser: $(SETUP)  ## what a browser does with the pages that the kit writes (needs chromium)
	$(PY) -m pytest -m browser

test-slurm: $(SETUP)  ## runs through a Slurm of this machine, and what else only a scheduler does (needs ../shared/cluster)
	$(PY) -m pytest -n 0 -m slurm

torture: $(SETUP)  ## kill a training run before and after every change that it makes to a file; each must end with the same bits (hours; JOBS)
	$(PY) -m tests.torture.run $(call opt,JOBS,--jobs)

lint: $(SETUP)  ## check the code's form
	$(VENV)/bin/ruff check .

goldens: $(SETUP)  ## make the reference outputs of the tests again (needs a C++ compiler and the public code, see tests/goldens/)
	$(PY) tests/goldens/make_mmcv_ext.py
	$(PY) tests/goldens/make_losses.py $(call plain,PUBLIC)

lock:  ## resolve requirements.lock anew from pyproject.toml (needs uv)
	uv pip compile pyproject.toml --extra dev --extra export --universal --python-version 3.11 --generate-hashes --no-emit-index-url --only-binary :all: -o requirements.lock

clean:  ## remove the virtual environment and made data; results stay
	@$(PYTHON) -I amdlib/setup_venv.py --remove $(call quote,$(VENV))
	rm -rf data/mini
