"""A Bert encoder, its hidden states pooled to one vector, and a classifier of linear layers.

transformers runs this file of an exported folder where it is told ``trust_remote_code=True``.
``config.mtl_jax`` says how to pool: ``mean`` of a text's tokens, ``cls``, the first of them, or
``pooler``, that one through the encoder's pooler; and, as ``hidden``, the units of each layer with
GELU that stands before the last one.
"""

import torch
from torch import nn
from transformers import BertConfig, BertModel, BertPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class PooledConfig(BertConfig):
    """The fields of the encoder, and those of a classifier."""

    model_type = "pooled_bert"


class PooledForSequenceClassification(BertPreTrainedModel):
    """The encoder and one classifier."""

    config_class = PooledConfig

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        encoder = BertModel(config)
        self.pooling = config.mtl_jax["pooling"]
        if self.pooling != "pooler" and hasattr(encoder, "pooler"):
            encoder.pooler = None
        setattr(self, self.base_model_prefix, encoder)
        self.dropout = nn.Dropout(config.mtl_jax["dropout"])
        units = [config.hidden_size, *config.mtl_jax.get("hidden", [])]
        self.hidden = nn.ModuleList(map(nn.Linear, units, units[1:]))
        self.classifier = nn.Linear(units[-1], config.num_labels)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, labels=None, **inputs):
        """As of any ``...ForSequenceClassification``."""
        inputs["return_dict"] = True
        outputs = self.base_model(input_ids, attention_mask=attention_mask, **inputs)
        hidden = outputs.last_hidden_state
        if self.pooling == "pooler":
            pooled = outputs.pooler_output
        elif self.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            # In float32: half precision has no whole numbers above 256 or 2048.
            ones = torch.ones(hidden.shape[:2], device=hidden.device)
            mask = (ones if attention_mask is None else attention_mask).float().unsqueeze(-1)
            pooled = ((hidden.float() * mask).sum(1) / mask.sum(1).clamp(min=1)).to(hidden.dtype)
        pooled = self.dropout(pooled)
        for layer in self.hidden:
            pooled = nn.functional.gelu(layer(pooled))
        logits = self.classifier(pooled)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
