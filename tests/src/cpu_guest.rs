//! A guest of a few instructions that prints what its CPU says of itself. It runs at CPL 0: on software KVM code at CPL 3
//! would be told by the host's processor.

use crate::machine::{LOAD_ADDRESS, elf};
use crate::process::Finished;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// CPUID: leaf, subleaf.
    Cpuid(u32, u32),
    /// A model-specific register.
    Msr(u32),
}

/// When it asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// After `READY`.
    Ready,
    /// At the first byte from the keyboard, for which it waits after it has said `listening`.
    Key,
}

/// Registers of an answer of CPUID: EAX, EBX, ECX, EDX.
pub type Registers = [u32; 4];

const LISTENING: &[u8] = b"listening\n";
/// These lie after the code.
const LISTENING_AT: u32 = 0xf00;
const WORDS_AT: u32 = 0x1000;
const TEXT_AT: u32 = 0x2000;
/// A word of text: eight digits and a line feed.
const LINE_BYTES: usize = 9;

const fn address(offset: u32) -> u32 {
    // The load address has 32 bits.
    #[expect(clippy::cast_possible_truncation, reason = "1 MiB")]
    let base = LOAD_ADDRESS as u32;
    base + offset
}

/// The kernel, an ELF.
///
/// # Panics
/// When there are more questions than there is room for.
#[must_use]
pub fn kernel(moment: Moment, questions: &[Question]) -> Vec<u8> {
    let mut code = vec![0xb9, 0x00, 0x08, 0x00, 0xc0]; // mov ecx, 0xc0000800: READY
    code.extend([0xc7, 0x01, 0, 0, 0, 0]); // mov dword [rcx], 0
    if moment == Moment::Key {
        wait_for_key(&mut code);
    }
    let mut words = 0;
    for question in questions {
        words += ask(&mut code, *question, words);
    }
    print_words(&mut code, words);
    code.extend([0xc7, 0x42, 0x10, 0, 0, 0, 0]); // mov dword [rdx + 0x10], 0: EXIT
    code.extend([0xf4, 0xeb, 0xfd]); // hlt; jmp to it
    let listening_at = usize::try_from(LISTENING_AT).expect("a small number");
    assert!(code.len() <= listening_at, "too many questions");
    code.resize(listening_at, 0);
    code.extend(LISTENING);
    elf(&code)
}

fn wait_for_key(code: &mut Vec<u8>) {
    code.extend([0xbb, 0x00, 0x00, 0xc0, 0xfe]); // mov ebx, 0xfec00000: I/O APIC
    code.extend([0xc7, 0x03, 0x12, 0, 0, 0]); // mov dword [rbx], 0x12: line 1, low half
    code.extend([0xc7, 0x43, 0x10, 0x21, 0, 0, 0]); // mov dword [rbx + 0x10], 0x21: open
    print(code, LISTENING_AT, LISTENING.len());
    code.extend([0xe4, 0x64, 0xa8, 1, 0x74, 0xfa]); // in al, 0x64; test al, 1; jz to it
}

/// Puts the answer after the first `words` words; gives how many words it has.
fn ask(code: &mut Vec<u8>, question: Question, words: u32) -> u32 {
    const EAX: u8 = 0x04;
    const EBX: u8 = 0x1c;
    const ECX: u8 = 0x0c;
    const EDX: u8 = 0x14;
    let registers: &[u8] = match question {
        Question::Cpuid(leaf, subleaf) => {
            code.push(0xb8); // mov eax, leaf
            code.extend(leaf.to_le_bytes());
            code.push(0xb9); // mov ecx, subleaf
            code.extend(subleaf.to_le_bytes());
            code.extend([0x0f, 0xa2]); // cpuid
            &[EAX, EBX, ECX, EDX]
        }
        Question::Msr(index) => {
            code.push(0xb9); // mov ecx, index
            code.extend(index.to_le_bytes());
            code.extend([0x0f, 0x32]); // rdmsr
            &[EDX, EAX]
        }
    };
    let mut count = 0;
    for register in registers {
        code.extend([0x89, *register, 0x25]); // mov [word], register
        code.extend(address(WORDS_AT + 4 * (words + count)).to_le_bytes());
        count += 1;
    }
    count
}

/// Prints `words` words, a line each.
fn print_words(code: &mut Vec<u8>, words: u32) {
    code.push(0xbe); // mov esi, words
    code.extend(address(WORDS_AT).to_le_bytes());
    code.push(0xbf); // mov edi, text
    code.extend(address(TEXT_AT).to_le_bytes());
    code.extend([0x41, 0xb9]); // mov r9d, count
    code.extend(words.to_le_bytes());
    code.extend([0xad, 0x89, 0xc2]); // word: lodsd; mov edx, eax
    code.extend([0xbb, 8, 0, 0, 0]); // mov ebx, 8
    code.extend([0xc1, 0xc2, 4, 0x88, 0xd0, 0x24, 0x0f]); // digit: rol edx, 4; mov al, dl; and al, 15
    code.extend([0x04, b'0', 0x3c, b'9', 0x76, 2, 0x04, 0x27]); // add al, '0'; if al > '9', add al, 'a' - '9' - 1
    code.extend([0xaa, 0xff, 0xcb, 0x75, 0xec]); // stosb; dec ebx; jnz digit
    code.extend([0xb0, b'\n', 0xaa]); // mov al, line feed; stosb
    code.extend([0x41, 0xff, 0xc9, 0x75, 0xdc]); // dec r9d; jnz word
    let words = usize::try_from(words).expect("a small number");
    print(code, TEXT_AT, words * LINE_BYTES);
}

fn print(code: &mut Vec<u8>, offset: u32, length: usize) {
    let length = u64::try_from(length).expect("a small number");
    code.extend([0xba, 0x08, 0x08, 0x00, 0xc0]); // mov edx, 0xc0000808: PRINT
    code.extend([0x48, 0xb8]); // mov rax, length << 48 | address
    code.extend((u64::from(address(offset)) | length << 48).to_le_bytes());
    code.extend([0x48, 0x89, 0x02]); // mov [rdx], rax
}

/// What a guest has printed, word by word.
#[derive(Debug)]
pub struct Answers(std::vec::IntoIter<u32>);

impl Answers {
    /// Those of a guest that has ended well.
    ///
    /// # Panics
    /// When it has not.
    #[must_use]
    #[track_caller]
    pub fn of(finished: &Finished) -> Self {
        assert_eq!(finished.code, 0, "{finished:#?}");
        let lines = finished.stdout.lines();
        let words: Vec<u32> = lines
            .filter(|line| line.as_bytes() != LISTENING.trim_ascii_end())
            .map(|line| u32::from_str_radix(line, 16).expect("a word"))
            .collect();
        Self(words.into_iter())
    }

    fn word(&mut self) -> u32 {
        self.0.next().expect("an answer")
    }

    /// The next answer, of CPUID.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn registers(&mut self) -> Registers {
        std::array::from_fn(|_| self.word())
    }

    /// The next answer, of a model-specific register.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn msr(&mut self) -> u64 {
        u64::from(self.word()) << 32 | u64::from(self.word())
    }
}
