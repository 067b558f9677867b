/// A contiguous piece of guest memory: RAM proper, a ROM, video memory. QEMU `ram.c`, `ram_save_setup`.
public struct RAMBlock: Sendable, Equatable, Codable {
    /// QEMU's `idstr`: `pc.ram`, `0000:00:02.0/vga.vram`; at most 255 bytes.
    public let name: String
    /// Used length in bytes, a multiple of 4096.
    public let length: UInt64
    /// Its place in the stream's list; pages name it by this.
    public let index: Int

    public init(name: String, length: UInt64, index: Int) {
        self.name = name
        self.length = length
        self.index = index
    }
}

/// The bits of a RAM word below the page offset. QEMU `ram.c`, `RAM_SAVE_FLAG_*`.
public enum RAMFlags {
    public static let fill: UInt64 = 0x02
    public static let blockList: UInt64 = 0x04
    public static let page: UInt64 = 0x08
    public static let end: UInt64 = 0x10
    public static let sameBlock: UInt64 = 0x20

    static func explain(_ flags: UInt64) -> String {
        let known: [(UInt64, String)] = [
            (0x01, "obsolete \"full\""), (0x40, "xbzrle"), (0x80, "RDMA hook"), (0x100, "compress"),
            (0x200, "multifd"),
        ]
        let names = known.filter { flags & $0.0 != 0 }.map(\.1)
        return names.isEmpty ? "" : " (\(names.joined(separator: ", ")))"
    }
}

/// Size of every page in the stream: x86's.
public let streamPageBytes = 4096

/// What a stream says about itself before the first page; kept with every epoch, because activation repeats it.
public struct StreamHeader: Sendable, Equatable, Codable {
    /// The configuration section's bytes after its type byte, as received; nil when the machine type sends none.
    public var configuration: [UInt8]?
    public var machine: String
    /// QEMU's number for the `ram` section.
    public var sectionID: UInt32
    public var sectionName: String
    public var instance: UInt32
    public var version: UInt32
    public var blocks: [RAMBlock]

    public init(configuration: [UInt8]?, machine: String, sectionID: UInt32, sectionName: String = "ram",
                instance: UInt32 = 0, version: UInt32 = 4, blocks: [RAMBlock]) {
        self.configuration = configuration
        self.machine = machine
        self.sectionID = sectionID
        self.sectionName = sectionName
        self.instance = instance
        self.version = version
        self.blocks = blocks
    }
}

/// Takes what the parser finds, on the reader's thread, in stream order. A page sent again replaces the earlier one.
///
/// Implement it as a final class or a struct and call the generic entry points with the concrete type: they are inlinable and
/// specialise, so a page costs no dynamic dispatch.
public protocol PageSink {
    /// The block list; once, before the first page.
    mutating func blocks(_ blocks: [RAMBlock]) throws(StreamError)
    /// 4096 bytes that lie in a chunk of the current epoch and stay valid until that chunk is given back. Not aligned.
    mutating func page(block: Int, offset: UInt64, bytes: UnsafeRawPointer)
    /// A page whose bytes are all `byte` (0 in practice).
    mutating func fill(block: Int, offset: UInt64, byte: UInt8)
    /// The parser has moved on to another chunk: every page in `chunk` has been delivered. True takes the chunk over (give it
    /// back to the pool when done); false leaves it for `StreamReader.takeChunks`. For passes larger than the pool.
    mutating func filled(_ chunk: Chunk) -> Bool
    /// The pool is at its limit. True means "try again", after having waited for memory; false ends in `StreamError.ceiling`.
    mutating func poolExhausted() -> Bool
}

extension PageSink {
    public mutating func filled(_ chunk: Chunk) -> Bool { false }
    public mutating func poolExhausted() -> Bool { false }
}
