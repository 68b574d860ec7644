"""How a sampler's loop is written in ONNX: one file per form, and what joins the parts around it."""
