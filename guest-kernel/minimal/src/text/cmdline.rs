//! The kernel command line: words separated by blanks; after ` -- ` come the arguments of the app.
//!
//! A monitor that does not know of ` -- ` (QEMU) appends its devices behind it, so they are taken from there too.

const MMIO_DEVICE: &str = "virtio_mmio.device";

/// A command line.
#[derive(Clone, Copy, Debug)]
pub struct Cmdline<'a> {
    parameters: &'a str,
    arguments: &'a str,
}

/// One `virtio_mmio.device=SIZE@BASE:IRQ` (Linux Documentation/admin-guide/kernel-parameters.txt).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MmioDevice {
    /// Guest-physical address of its registers.
    pub base: usize,
    /// Size of its registers in bytes.
    pub len: usize,
    /// Its interrupt line.
    pub line: u32,
}

impl<'a> Cmdline<'a> {
    /// Splits `text`.
    pub fn new(text: &'a str) -> Self {
        match Words(text).find(|&word| word == "--") {
            Some(word) => {
                // The word is a piece of `text`, so the distance of their starts is its offset.
                let at = word.as_ptr() as usize - text.as_ptr() as usize;
                Self {
                    parameters: &text[..at],
                    arguments: &text[at + word.len()..],
                }
            }
            None => Self {
                parameters: text,
                arguments: "",
            },
        }
    }

    /// Values of all `name=value` parameters of this name, in order.
    pub fn values(self, name: &'a str) -> impl Iterator<Item = &'a str> {
        Words(self.parameters).filter_map(move |word| value(word, name))
    }

    /// Value of the last `name=value` of this name.
    pub fn value(self, name: &'a str) -> Option<&'a str> {
        self.values(name).last()
    }

    /// Arguments of the app.
    pub fn arguments(self) -> Arguments<'a> {
        Arguments(Words(self.arguments))
    }

    /// The virtio devices it names; malformed entries are left out.
    pub fn mmio_devices(self) -> impl Iterator<Item = MmioDevice> {
        let words = Words(self.parameters).chain(Words(self.arguments));
        words.filter_map(|word| mmio_device(value(word, MMIO_DEVICE)?))
    }
}

/// Arguments of the app, in order.
#[derive(Clone, Debug)]
pub struct Arguments<'a>(Words<'a>);

impl<'a> Iterator for Arguments<'a> {
    type Item = &'a str;

    #[inline]
    fn next(&mut self) -> Option<&'a str> {
        self.0.find(|word| value(word, MMIO_DEVICE).is_none())
    }
}

/// The words of a text. As `str::split_ascii_whitespace`, but small enough to be inlined: it runs between a restore and
/// the first output.
#[derive(Clone, Debug)]
struct Words<'a>(&'a str);

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    #[inline]
    fn next(&mut self) -> Option<&'a str> {
        let text = self.0.trim_ascii_start();
        let len = text
            .bytes()
            .position(|byte| byte.is_ascii_whitespace())
            .unwrap_or(text.len());
        let (word, rest) = text.split_at(len);
        self.0 = rest;
        (len > 0).then_some(word)
    }
}

fn value<'a>(word: &'a str, name: &str) -> Option<&'a str> {
    word.strip_prefix(name)?.strip_prefix('=')
}

fn mmio_device(value: &str) -> Option<MmioDevice> {
    let (len, place) = value.split_once('@')?;
    let mut place = place.split(':');
    let base = number(place.next()?)?;
    let line = u32::try_from(number(place.next()?)?).ok()?;
    Some(MmioDevice {
        base,
        len: number(len)?,
        line,
    })
}

/// A number as Linux writes it: decimal or `0x`, with an optional suffix K, M or G.
pub fn number(text: &str) -> Option<usize> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number = match digits
        .strip_prefix("0x")
        .or_else(|| digits.strip_prefix("0X"))
    {
        Some(hex) => usize::from_str_radix(hex, 16).ok()?,
        None => digits.parse().ok()?,
    };
    number.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_and_arguments_are_split_at_the_first_double_dash() {
        let cmdline = Cmdline::new("app=echo  lightv.control=0xc0000000 app=http -- 80 -- x=y");
        assert_eq!(cmdline.value("app"), Some("http"));
        assert_eq!(cmdline.value("x"), None);
        assert_eq!(cmdline.arguments().collect::<Vec<_>>(), ["80", "--", "x=y"]);
    }

    #[test]
    fn dashes_inside_a_word_do_not_separate() {
        let cmdline = Cmdline::new("a--b=1 app=hello");
        assert_eq!(cmdline.value("app"), Some("hello"));
        assert_eq!(cmdline.arguments().count(), 0);
    }

    #[test]
    fn a_name_matches_whole_words_only() {
        assert_eq!(Cmdline::new("myapp=1 apple=2 app").value("app"), None);
    }

    #[test]
    fn mmio_devices_of_all_monitors_are_read() {
        let text = "virtio_mmio.device=4K@0xc0010000:5 virtio_mmio.device=512@0xfeb02e00:12 \
                    virtio_mmio.device=0x1000@0xd0000000:6:3 virtio_mmio.device=4K@:5 \
                    virtio_mmio.device=@0x1:5 virtio_mmio.device=4K@0x1";
        let devices: Vec<_> = Cmdline::new(text).mmio_devices().collect();
        assert_eq!(
            devices,
            [
                MmioDevice {
                    base: 0xc001_0000,
                    len: 4096,
                    line: 5
                },
                MmioDevice {
                    base: 0xfeb0_2e00,
                    len: 512,
                    line: 12
                },
                MmioDevice {
                    base: 0xd000_0000,
                    len: 4096,
                    line: 6
                },
            ]
        );
    }

    #[test]
    fn devices_behind_the_arguments_are_devices() {
        let cmdline = Cmdline::new("app=x -- 1 virtio_mmio.device=512@0x1000:5 2");
        assert_eq!(cmdline.arguments().collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(cmdline.mmio_devices().count(), 1);
    }

    #[test]
    fn numbers_have_suffixes_and_bounds() {
        for (text, want) in [
            ("0", Some(0)),
            ("0x1F", Some(31)),
            ("4K", Some(4096)),
            ("2m", Some(2 << 20)),
            ("", None),
            ("K", None),
            ("0x", None),
            ("-1", None),
            ("99999999999999999999", None),
            ("0xffffffffffffffffG", None),
        ] {
            assert_eq!(number(text), want, "{text:?}");
        }
    }
}
