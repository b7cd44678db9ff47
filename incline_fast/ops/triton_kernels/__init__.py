"""The ops as Triton kernels. Importing this package needs no Triton; its modules do."""
