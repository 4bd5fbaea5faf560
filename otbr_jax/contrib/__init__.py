"""What only the default before `disarm` needs: its verdict, fine-tuning, distillation. Its settings and rows stay."""
