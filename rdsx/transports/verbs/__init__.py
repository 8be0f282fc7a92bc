"""RDS over InfiniBand and RoCE, through rdma-core. Optional: found when it is first asked for, never when rdsx is imported."""
