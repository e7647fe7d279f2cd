//! Writes a `newc` cpio archive, the form of a Linux initramfs.
//! Only what the guest image needs: directories, files, symbolic links, device nodes.

use std::io::{self, Write};

/// The archive's number for "nothing follows".
const TRAILER: &str = "TRAILER!!!";
const MODE_DIRECTORY: u32 = 0o040_000;
const MODE_FILE: u32 = 0o100_000;
const MODE_SYMLINK: u32 = 0o120_000;
const MODE_CHAR_DEVICE: u32 = 0o020_000;

/// An archive being written to `out`.
pub struct CpioWriter<W: Write> {
    out: W,
    next_inode: u32,
}

impl<W: Write> CpioWriter<W> {
    /// Starts an archive.
    pub fn new(out: W) -> Self {
        Self { out, next_inode: 1 }
    }

    /// Adds a directory (its parents must have been added before).
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, MODE_DIRECTORY | 0o755, (0, 0), &[])
    }

    /// Adds a file with its permission bits.
    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        self.entry(path, MODE_FILE | (permissions & 0o7777), (0, 0), content)
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, MODE_SYMLINK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a character device node.
    pub fn char_device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(path, MODE_CHAR_DEVICE | 0o600, (major, minor), &[])
    }

    /// Writes the trailer and hands the output back.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry(TRAILER, 0, (0, 0), &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(
        &mut self,
        path: &str,
        mode: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> io::Result<()> {
        let name = path.trim_start_matches('/');
        let size = u32::try_from(content.len())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "file of 4 GiB or more"))?;
        let name_size = u32::try_from(name.len() + 1)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "path too long"))?;
        let inode = self.next_inode;
        self.next_inode += 1;
        // Owner root, one link, time 0: the same inputs make the same bytes.
        let fields = [
            inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0,
        ];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(&[0])?;
        self.pad(header.len() + name.len() + 1)?;
        self.out.write_all(content)?;
        self.pad(content.len())
    }

    /// Header with name, and content, each end on a multiple of four.
    fn pad(&mut self, written: usize) -> io::Result<()> {
        let rest = (4 - written % 4) % 4;
        self.out.write_all(&[0u8; 3][..rest])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_header_the_kernel_reads() {
        let mut cpio = CpioWriter::new(Vec::new());
        cpio.file("/init", 0o755, b"hello").unwrap();
        let bytes = cpio.finish().unwrap();
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[14..22], b"000081ed", "mode: a file, 0755");
        assert_eq!(&bytes[54..62], b"00000005", "size of the content");
        assert_eq!(
            &bytes[94..102],
            b"00000005",
            "size of the name with its zero"
        );
        assert_eq!(&bytes[110..115], b"init\0");
        assert_eq!(bytes[116..121], *b"hello");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn every_entry_starts_on_a_multiple_of_four() {
        for length in 0..9 {
            let mut cpio = CpioWriter::new(Vec::new());
            cpio.file("f", 0o644, &vec![7; length]).unwrap();
            let bytes = cpio.finish().unwrap();
            let second = bytes
                .windows(6)
                .skip(6)
                .position(|w| w == b"070701")
                .unwrap()
                + 6;
            assert_eq!(second % 4, 0, "content of {length} bytes");
        }
    }
}
