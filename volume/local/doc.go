// Package local is a [volume.Driver] that keeps volumes in a folder of one
// Linux node. It needs root.
//
// A volume is a directory, an ext4 image that is mounted through a loop
// device, or a tmpfs (option "type" "tmpfs"). How a Size is enforced:
//
//	size-mode   Size is held by
//	auto        a project quota when the filesystem has them, else the size
//	            of an image, else nobody
//	quota       a project quota; Create is refused without them
//	loop        the size of an image; needs mkfs.ext4
//	none        nobody
//
// So by default a Size is enforced, but where the filesystem has no project
// quotas and an image cannot be: without mkfs.ext4 or loop devices, or with a
// Size below 1 MiB. Status.Enforced says whether it is. What auto chose for a
// volume is chosen for good. An image is sparse: it takes room as it is
// written, and its own tables take some of the Size.
//
// Project quotas work on ext4 and xfs mounted with prjquota, and hold every
// process but one with CAP_SYS_RESOURCE, which containers do not have by
// default. A tmpfs holds its Size by itself. The options
// "uid", "gid" and "mode" (octal) set the owner and permissions of the
// volume's root when it is made; the container's own changes stay.
//
// Below its folder the driver keeps
//
//	volumes/NAME/volume.json   what the volume is
//	volumes/NAME/data          its content, or where it is mounted
//	volumes/NAME/image         the image, when it has one
//	volumes/NAME/mounts/       one empty file for each mount
//	views/                     read-only views, a mount each
//	binds/                     bound paths of the host, a mount each
//	snapshots/NAME/            like volumes
//	tmp/, trash/               being made, being deleted
//
// Everything is made in tmp and renamed into place, and renamed to trash
// before it is deleted, so the program can be killed at any instant: [Open]
// finishes or undoes what it finds half done. Mounts belong to the kernel and
// outlive the program; Mount after a restart finds them.
//
//	d, err := local.Open(local.Options{Dir: "/var/lib/app/volumes", BindRoots: []string{"/srv"}})
//	if err != nil { ... }
//	defer d.Close()
//	err = d.Create(ctx, volume.Volume{Name: "db", Size: 10 << 30})
//	path, err := d.Mount(ctx, volume.Mount{Volume: "db", Task: "db.1"})
//	// bind path into the containers of db.1
package local
