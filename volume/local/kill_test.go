//go:build linux

package local

const victimEnv = "VOLUME_LOCAL_VICTIM"

func victim() int { return 1 }
