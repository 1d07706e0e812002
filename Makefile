# The AMD kit. `make help` explains every target and variable.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON  ?= python3
VENV    ?= .venv
PROFILE ?= mini
PY      := $(VENV)/bin/python
SETUP   := $(VENV)/.setup-done
# unset variables are passed on as nothing, so that every default is written once, in the notebook or in amdlib
AMDLIB  := $(PY) -m amdlib
WHERE    = --profile $(PROFILE) $(if $(DATA),--data "$(DATA)")
# settings of every run, quoted as in a shell: 'backbone=a folder/r18.pth'
pair     = $(if $(2),'$(1)=$(2)')
RECIPE   = $(call pair,epochs,$(filter-out 0,$(EPOCHS))) $(call pair,gpus,$(GPUS)) \
           $(call pair,batch_size,$(BATCH_SIZE)) $(call pair,accumulate,$(ACCUMULATE)) $(call pair,lr,$(LR)) \
           $(call pair,amp,$(AMP)) $(call pair,half_teacher,$(HALF_TEACHER))
OWN      = $(RECIPE) $(call pair,backbone,$(BACKBONE)) $(call pair,teacher_backbone,$(TEACHER_BACKBONE)) \
           $(call pair,teacher_checkpoint,$(TEACHER))
# what changes no number reaches every process of a batch through the environment
export AMD_WEIGHTS       := $(or $(WEIGHTS),$(AMD_WEIGHTS))
export AMD_MIRRORS       := $(or $(MIRRORS),$(AMD_MIRRORS))
export AMD_TEACHER_CHECK := $(if $(filter-out 0,$(SKIP_TEACHER_CHECK)),0,$(AMD_TEACHER_CHECK))
export AMD_TENSORBOARD   := $(or $(TENSORBOARD),$(AMD_TENSORBOARD))
export AMD_WORKERS       := $(or $(WORKERS),$(AMD_WORKERS))
# a parameter of the notebook, where the variable has a value
set      = $(if $(2),--set "$(1)=$(2)")
SET      = $(call set,group,$(GROUP)) $(call set,seeds,$(strip $(SEEDS))) $(call set,values,$(strip $(PHI))) \
           $(call set,device,$(DEVICE)) $(call set,jobs,$(JOBS)) $(call set,force,$(if $(filter-out 0,$(FORCE)),True)) \
           $(call set,settings,$(strip $(OWN) $(SETTINGS)))

# reproduce-fig4 -> fig4; the command line takes the rest
REPRODUCE = @$(AMDLIB) reproduce $(@:reproduce-%=%) $(WHERE) $(SET)

.PHONY: help setup doctor list data reproduce-table1 reproduce-table2 reproduce-table3 reproduce-table4 \
        reproduce-table5 reproduce-table6 reproduce-fig1 reproduce-fig3 reproduce-fig4 sweep-phi reproduce-all status \
        weights export paper-dryrun cost values report lab test test-fast lint goldens lock clean

help:  ## this text
	@echo 'The AMD kit: rerun "AMD: Adaptive Masked Distillation for Object Detection" (arXiv 2301.13538)'
	@echo; echo 'Targets:'
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  \1|\2/' | column -t -s '|'
	@echo; echo 'Variables (make TARGET NAME=value):'
	@grep -hE '^#\? ' $(MAKEFILE_LIST) | sed -E 's/^#\? ([A-Z_]+) /  \1|/' | column -t -s '|'

#? PROFILE mini (default: shapes, narrow networks, minutes on a CPU), small (a real data set), paper (COCO)
#? DATA folder of the data set, for PROFILE=small (COCO or Pascal VOC layout) and PROFILE=paper (COCO 2017)
#? GROUP retinanet, reppoints or faster_rcnn; default: all three (one figure: the paper's)
#? SEEDS seeds of the students, such as "0 1 2"; default: 0
#? PHI values of the threshold for sweep-phi; default: "0.5 0.7 0.9 1.0 1.1 1.3 1.5"
#? EPOCHS train teachers and students this long instead of the profile's own schedule
#? DEVICE cpu, cuda or cuda:N; default: a GPU where there is one
#? JOBS runs at once; default: one a GPU, or one a core (four at most) without a GPU
#? FORCE 1 trains again what is done
#? BACKBONE weight file for the students' backbones (small, paper); default: from scratch, in paper as mmdet has it
#? TEACHER_BACKBONE the same for the teacher
#? TEACHER weight file of a whole teacher detector, instead of training one; with one GROUP
#? WEIGHTS folder with published weights (teachers, ImageNet backbones), for PROFILE=paper
#? MIRRORS addresses or folders to look for published weights before their home
#? SKIP_TEACHER_CHECK 1 trains although a published teacher's mAP was not checked
#? GPUS train each run on so many GPUs together; the learning rate follows
#? BATCH_SIZE images a step and GPU; the learning rate follows
#? ACCUMULATE steps of which the gradients are added before the weights change
#? LR learning rate, taken as it is
#? AMP bf16 or fp16: mixed precision
#? HALF_TEACHER bf16 or fp16: the frozen teacher's forward pass alone
#? WORKERS processes that load pictures, a GPU; changes no number
#? TENSORBOARD 1 writes what is logged for TensorBoard too
#? SETTINGS other settings of every run, such as "tf32=True channels_last=True fused=True compile_teacher=True"
#? RUN name of the run to export, such as retinanet-amd-s0
#? MEASURE 1 has cost time a few steps of each row on this machine's GPU
#? SWITCHES 1 has cost compare the switches for speed, each alone and all together (MEASURE=1: time them)
#? ONNX 1 exports the run as ONNX too
#? PYTHON interpreter for make setup, 3.11 or newer; default: python3
#? PUBLIC folder of the public code, for make goldens (see tests/goldens/)
#? VENV folder of the virtual environment; default: .venv

setup: $(SETUP)  ## create the virtual environment from requirements.lock (every other target does so too)

$(SETUP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"error: $(PYTHON) is Python {v[0]}.{v[1]}; the kit needs 3.11 or newer: make setup PYTHON=python3.12")'
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo 'error: $(PYTHON) lacks venv or ensurepip (Debian, Ubuntu: apt install python3-venv)'; exit 1; }
	@echo 'setting up $(VENV): about 4 GB to download, a few minutes'
	@test -d $(VENV)/conda-meta || $(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

doctor: $(SETUP)  ## print versions, GPU, operators in use, what is missing and how to mend it
	@$(AMDLIB) doctor

list: $(SETUP)  ## list every row with the paper's value
	@$(AMDLIB) list

data: $(SETUP)  ## prepare and check the data set of PROFILE
	@$(AMDLIB) data $(WHERE)

reproduce-table1: $(SETUP)  ## Table I, the methods compared: train what is missing, evaluate, show it beside the paper's
	$(REPRODUCE)

reproduce-table2: $(SETUP)  ## Table II, what each part of AMD brings: RetinaNet
	$(REPRODUCE)

reproduce-table3: $(SETUP)  ## Table III, the same: RepPoints
	$(REPRODUCE)

reproduce-table4: $(SETUP)  ## Table IV, the same: Faster R-CNN
	$(REPRODUCE)

reproduce-table5: $(SETUP)  ## Table V, generation blocks
	$(REPRODUCE)

reproduce-table6: $(SETUP)  ## Table VI, position of the channel clue
	$(REPRODUCE)

reproduce-fig1: $(SETUP)  ## Fig. 1, the teacher's attention with region scores
	$(REPRODUCE)

reproduce-fig3: $(SETUP)  ## Fig. 3, feature maps of teacher, baseline, FGD, MGD and AMD
	$(REPRODUCE)

reproduce-fig4: $(SETUP)  ## Fig. 4, mAP and mAR over phi (RepPoints, or GROUP)
	$(REPRODUCE)

sweep-phi: reproduce-fig4  ## the same, for the values PHI: one executed notebook a value, then Fig. 4

reproduce-all: $(SETUP)  ## every table and figure: train what is missing, execute every notebook, then the report
	@code=0; $(AMDLIB) reproduce all $(WHERE) $(SET) || code=$$?; $(AMDLIB) report $(WHERE); exit $$code

status: $(SETUP)  ## which runs are done, running, failed, stale or missing, and why
	@$(AMDLIB) status $(WHERE) $(SET)

weights: $(SETUP)  ## find or fetch the published weights of PROFILE=paper, and say where they are
	@$(AMDLIB) weights

export: $(SETUP)  ## write the detector of RUN as files for stock mmdet (ONNX=1: and as ONNX)
	@$(AMDLIB) export $(RUN) $(WHERE) $(if $(filter-out 0,$(ONNX)),--onnx)

paper-dryrun: $(SETUP)  ## every row a few steps at the paper's architectures, with random weights (needs DATA)
	@$(AMDLIB) dryrun $(if $(DATA),--data "$(DATA)") $(if $(JOBS),--jobs $(JOBS)) $(if $(DEVICE),--device $(DEVICE))

cost: $(SETUP)  ## steps, measured seconds a step, memory and GPU-hours of each row (MEASURE=1 times them here)
	@$(AMDLIB) cost $(WHERE) $(if $(filter-out 0,$(MEASURE)),--measure) $(if $(filter-out 0,$(SWITCHES)),--switches) $(if $(DEVICE),--device $(DEVICE)) $(foreach one,$(RECIPE) $(SETTINGS),--set $(one))

values: $(SETUP)  ## every value of the paper's experiments with its source
	@$(AMDLIB) values

report: $(SETUP)  ## gather what is there in a static web site, results/<profile>/report/index.html
	@$(AMDLIB) report $(WHERE)

lab: $(SETUP)  ## open the notebooks in JupyterLab
	PATH="$(abspath $(VENV))/bin:$$PATH" $(VENV)/bin/jupyter lab --notebook-dir notebooks

test: $(SETUP)  ## all tests (needs neither network nor GPU)
	$(PY) -m pytest

test-fast: $(SETUP)  ## the tests that take seconds
	$(PY) -m pytest -m 'not slow'

lint: $(SETUP)  ## check the code's form
	$(VENV)/bin/ruff check amdlib tests

goldens: $(SETUP)  ## make the reference outputs of the tests again (needs a C++ compiler and the public code, see tests/goldens/)
	$(PY) tests/goldens/make_mmcv_ext.py
	$(PY) tests/goldens/make_losses.py $(PUBLIC)

lock:  ## resolve requirements.lock anew from pyproject.toml (needs uv)
	uv pip compile pyproject.toml --extra dev --extra export --universal --python-version 3.11 --generate-hashes --no-emit-index-url --only-binary :all: -o requirements.lock

clean:  ## remove the virtual environment and made data; results stay
	rm -rf $(VENV) data/mini
