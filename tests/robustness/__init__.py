"""What vitdeploy is tried with: failing disks and kills (`chaos`), and damaged or hostile input (`fuzz`)."""
