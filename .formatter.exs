[
  line_length: 98,
  inputs: [
    "{mix,.formatter}.exs",
    "{bin,bench,config,examples,lib,mix,test}/**/*.{ex,exs}"
  ]
]
