// Package image builds container images without a registry, a daemon or a
// Dockerfile, and checks archives of images before anything unpacks them.
//
// [FromBinary] makes an image of one static program, [FromDir] one of a
// folder. Both are deterministic: the same input gives the same digests, so
// importing it again changes nothing. The result is read as an OCI image
// layout in a tar stream, the form that every runtime.Importer takes:
//
//	img, err := image.FromBinary("myapp/web:1", "./web", image.Options{})
//	if err != nil {
//		return err
//	}
//	r := img.Reader()
//	defer r.Close()
//	images, err := importer.Import(ctx, r)
//
// [Check] reads such a stream, or one of "docker save", and refuses what is
// damaged or hostile: paths and links that lead out, sizes that do not end,
// digests that are not those of the content. Drivers pass archives through it.
//
// Formats: OCI image-spec 1.1 (image-layout.md, manifest.md, config.md,
// layer.md).
package image
