# The quickstart: real images, noisy texts, one command after the other. Each is printed before it runs; what is
# there is not made again, and a training run that was interrupted goes on from its last checkpoint.
#
#   make -f configs/quickstart/quickstart.mk [QUICKSTART=runs/quickstart] [SEED=1] [STEPS=...] [PAIRS=folder]

export QUICKSTART ?= runs/quickstart
export DO_NOT_TRACK := 1
SEED ?= 1
export PAIRS ?= $(QUICKSTART)/pairs
STEPS ?=
CONFIGS := configs/quickstart
RUNS := clip-pairs clip-i2e devise entity-unchecked entity mofi
MODELS := $(RUNS:%=$(QUICKSTART)/%/model/config.json)

FIT = mofi fit --config $(CONFIGS)/common.yaml --config $(CONFIGS)/$(1).yaml --ckpt_path last \
	--seed_everything $(SEED) --data.init_args.seed $(SEED) --trainer.default_root_dir $(QUICKSTART)/$(1) \
	$(if $(STEPS),--trainer.max_steps $(STEPS))

.DELETE_ON_ERROR:
.PHONY: all
all: $(QUICKSTART)/report.html

# noisy image + alt-text pairs, a knowledge base, and the truth that only measurement may see
$(PAIRS)/truth.parquet:
	mofi pairs emoji --output $(PAIRS) --seed 1

$(QUICKSTART)/tokenizer.json: | $(PAIRS)/truth.parquet
	mofi data tokenizer $(PAIRS) $@ --vocab_size 4000

$(QUICKSTART)/data/pairs/dataset.json: | $(PAIRS)/truth.parquet
	mofi data build parquet --path $(PAIRS)/train.parquet --output $(@D)

$(QUICKSTART)/data/validation/dataset.json: | $(PAIRS)/truth.parquet
	mofi data build parquet --path $(PAIRS)/validation.parquet --output $(@D)

# (a data set of `mofi curate` is complete with its curation.json)
# entities linked in the texts, before and after the check by the CLIP that saw nothing but the noisy pairs
$(QUICKSTART)/data/i2e-unchecked/curation.json: | $(PAIRS)/truth.parquet
	mofi curate $(PAIRS)/train.parquet $(@D) --min_images 2

$(QUICKSTART)/data/i2e/curation.json: | $(QUICKSTART)/clip-pairs/model/config.json
	mofi curate $(PAIRS)/train.parquet $(@D) --config configs/curation/emoji.yaml --scorer $(QUICKSTART)/clip-pairs/model

$(QUICKSTART)/vectors.parquet: | $(PAIRS)/truth.parquet
	mofi vectors $(PAIRS)/knowledge_base.parquet $@

$(QUICKSTART)/clip-pairs/model/config.json: | $(QUICKSTART)/data/pairs/dataset.json
$(QUICKSTART)/clip-i2e/model/config.json: | $(QUICKSTART)/data/i2e/curation.json
$(QUICKSTART)/devise/model/config.json: | $(QUICKSTART)/data/i2e/curation.json $(QUICKSTART)/vectors.parquet
$(QUICKSTART)/entity-unchecked/model/config.json: | $(QUICKSTART)/data/i2e-unchecked/curation.json
$(QUICKSTART)/entity/model/config.json: | $(QUICKSTART)/data/i2e/curation.json
$(QUICKSTART)/mofi/model/config.json: | $(QUICKSTART)/data/i2e/curation.json
$(MODELS): | $(QUICKSTART)/tokenizer.json $(QUICKSTART)/data/validation/dataset.json

$(QUICKSTART)/%/model/config.json:
	$(call FIT,$*)

$(QUICKSTART)/report.html: $(MODELS)
	mofi evaluate --model pixels $(foreach run,$(RUNS),$(run)=$(QUICKSTART)/$(run)) \
		--data $(PAIRS)/test.parquet --output $(QUICKSTART) \
		--curation $(QUICKSTART)/data/i2e-unchecked/curation.json $(QUICKSTART)/data/i2e/curation.json
