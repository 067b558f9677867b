import Glibc
import Platform

/// The stream that makes a waiting QEMU (`-incoming defer`) continue a guest whose RAM is already in place.
///
///     "QEVM" 3, 07 configuration, 01 ram start: block list, 03 ram end: pages of the blocks that are not in place,
///     device state (ends with 00), 06 0
///
/// Pages are written from where they lie; only their 8-byte words are built. 219 KB in all for a 256 MiB guest.
public struct ActivationStream {
    /// Memory that holds a block's content; lent until the stream is written.
    public struct Content {
        /// The block's index in the header.
        public let block: Int
        public let bytes: UnsafeRawBufferPointer
        /// Whether the waiting QEMU's block is still all zero, so that zero pages need not be sent. A ROM is not.
        public let startsZero: Bool
        /// Where it may hold anything but zeros, in ascending ranges on page boundaries; nil: anywhere. What lies outside is not read unless it
        /// has to be sent as zeros.
        public let occupied: [Range<Int>]?

        public init(block: Int, bytes: UnsafeRawBufferPointer, startsZero: Bool = false, occupied: [Range<Int>]? = nil) {
            self.block = block
            self.bytes = bytes
            self.startsZero = startsZero
            self.occupied = occupied
        }
    }

    /// Whether a block is all zero in a QEMU that has just started: video memory is, ROMs and tables are not. Spares 16 MiB
    /// of standard VGA memory 4096 words, and QEMU looking at each of its pages.
    public static func startsZero(_ block: String) -> Bool {
        block == "vga.vram" || block.hasSuffix("/vga.vram") || block.hasSuffix("/qxl.vram")
    }

    /// Blocks and contents that do not fit together.
    public enum BuildError: Error, CustomStringConvertible, Sendable, Equatable {
        case noSuchBlock(Int)
        case wrongLength(block: String, length: Int, expected: UInt64)
        case nameTooLong(String)
        case badDeviceState

        public var description: String {
            switch self {
            case .noSuchBlock(let index): "Content for RAM block \(index), which the stream does not have"
            case .wrongLength(let block, let length, let expected):
                "Content of \(length) bytes for RAM block \"\(block)\" of \(expected)"
            case .nameTooLong(let name): "Name \"\(name)\" is over 255 bytes"
            case .badDeviceState: "The device state is empty or does not end with its closing byte"
            }
        }
    }

    /// A piece of the stream: a range of `words`, or memory of the caller's.
    private enum Piece {
        case words(Range<Int>)
        case memory(UnsafeRawBufferPointer)
    }

    private var words: [UInt8] = []
    private var pieces: [Piece] = []
    private var wordsStart = 0
    /// Length of the whole stream.
    public private(set) var totalBytes = 0

    /// - Parameters:
    ///   - header: as the primary's stream gave it.
    ///   - contents: of every block that is not in place already; a block that is in neither stays as the waiting QEMU
    ///     made it.
    ///   - deviceState: of the last committed epoch.
    public init(header: StreamHeader, contents: [Content],
                deviceState: UnsafeRawBufferPointer) throws(BuildError) {
        guard deviceState.last == SectionType.endOfSections else { throw .badDeviceState }
        put(streamMagic)
        put(streamVersion)
        if let configuration = header.configuration {
            words.append(SectionType.configuration)
            words += configuration
        }
        try putStart(header)
        words.append(SectionType.end)
        put(header.sectionID)
        for content in contents {
            try putPages(content, header)
        }
        put(RAMFlags.end)
        putFooter(header)
        putMemory(deviceState)
        words.append(SectionType.description)
        put(UInt32(0))
        closeWords()
    }

    /// The length that a block's content must have is its used length.
    private mutating func putStart(_ header: StreamHeader) throws(BuildError) {
        words.append(SectionType.start)
        put(header.sectionID)
        try put(header.sectionName)
        put(header.instance)
        put(header.version)
        put(header.blocks.reduce(UInt64(0)) { $0 &+ $1.length } | RAMFlags.blockList)
        for block in header.blocks {
            try put(block.name)
            put(block.length)
        }
        put(RAMFlags.end)
        putFooter(header)
    }

    private mutating func putPages(_ content: Content, _ header: StreamHeader) throws(BuildError) {
        guard header.blocks.indices.contains(content.block) else { throw .noSuchBlock(content.block) }
        let block = header.blocks[content.block]
        guard UInt64(content.bytes.count) == block.length, let base = content.bytes.baseAddress,
              content.bytes.count % streamPageBytes == 0
        else { throw .wrongLength(block: block.name, length: content.bytes.count, expected: block.length) }
        var sameBlock: UInt64 = 0
        let whole = [0..<content.bytes.count]
        let ranges = content.startsZero ? content.occupied ?? whole : whole
        for offset in ranges.lazy.flatMap({ stride(from: $0.lowerBound, to: min($0.upperBound, content.bytes.count), by: streamPageBytes) }) {
            let page = base + offset
            let zero = isZero(page)
            if zero, content.startsZero { continue }
            put(UInt64(offset) | (zero ? RAMFlags.fill : RAMFlags.page) | sameBlock)
            if sameBlock == 0 { try put(block.name) }
            sameBlock = RAMFlags.sameBlock
            if zero {
                words.append(0)
            } else {
                putMemory(UnsafeRawBufferPointer(start: page, count: streamPageBytes))
            }
        }
    }

    /// A page equals itself moved by 8 bytes when all its words are the same; memcmp does that with vector instructions.
    private func isZero(_ page: UnsafeRawPointer) -> Bool {
        page.loadUnaligned(as: UInt64.self) == 0 && memcmp(page, page + 8, streamPageBytes - 8) == 0
    }

    // MARK: Building

    private mutating func put(_ value: some FixedWidthInteger) {
        withUnsafeBytes(of: value.bigEndian) { words.append(contentsOf: $0) }
    }

    private mutating func put(_ text: String) throws(BuildError) {
        guard let length = UInt8(exactly: text.utf8.count) else { throw .nameTooLong(text) }
        words.append(length)
        words += Array(text.utf8)
    }

    private mutating func putFooter(_ header: StreamHeader) {
        words.append(SectionType.footer)
        put(header.sectionID)
    }

    private mutating func putMemory(_ bytes: UnsafeRawBufferPointer) {
        closeWords()
        pieces.append(.memory(bytes))
        totalBytes += bytes.count
    }

    private mutating func closeWords() {
        guard words.count > wordsStart else { return }
        pieces.append(.words(wordsStart..<words.count))
        totalBytes += words.count - wordsStart
        wordsStart = words.count
    }

    // MARK: Writing

    /// The stream in one piece, for tests and files.
    public func bytes() -> [UInt8] {
        var result: [UInt8] = []
        result.reserveCapacity(totalBytes)
        for piece in pieces {
            switch piece {
            case .words(let range): result += words[range]
            case .memory(let bytes): result.append(contentsOf: bytes)
            }
        }
        return result
    }

    /// Writes the stream to a socket or pipe (blocking or not), 1024 pieces a system call.
    ///
    /// - Parameter deadline: when to give up on a receiver that takes nothing (`ETIMEDOUT`); nil: never.
    public func write(to fd: Int32, deadline: MonotonicTime? = nil) throws(SystemError) {
        let failure: SystemError? = words.withUnsafeBytes { words in
            var vectors = pieces.map { piece in
                let bytes = switch piece {
                case .words(let range): UnsafeRawBufferPointer(rebasing: words[range])
                case .memory(let bytes): bytes
                }
                return iovec(iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress), iov_len: bytes.count)
            }
            return vectors.withUnsafeMutableBufferPointer { vectors in
                var first = 0
                while first < vectors.count {
                    let sent = Self.sendSome(fd, vectors, from: first, deadline)
                    switch sent {
                    case .failure(let error): return error
                    case .success(let count): Self.advance(vectors, &first, by: count)
                    }
                }
                return nil
            }
        }
        if let failure { throw failure }
    }

    private static func sendSome(_ fd: Int32, _ vectors: UnsafeMutableBufferPointer<iovec>, from first: Int,
                                 _ deadline: MonotonicTime?) -> Result<Int, SystemError> {
        let count = min(1024, vectors.count - first)
        guard let base = vectors.baseAddress else { return .success(0) }
        while true {
            // sendmsg and not writev where possible: a receiver that went away must not raise SIGPIPE.
            var message = msghdr()
            message.msg_iov = base + first
            message.msg_iovlen = count
            var sent = sendmsg(fd, &message, Int32(MSG_NOSIGNAL))
            if sent < 0, errno == ENOTSOCK { sent = writev(fd, base + first, Int32(count)) }
            if sent >= 0 { return .success(sent) }
            switch errno {
            case EINTR: continue
            case EAGAIN:
                var entry = pollfd(fd: fd, events: Int16(POLLOUT), revents: 0)
                let timeout = deadline?.pollTimeout ?? -1
                if poll(&entry, 1, timeout) == 0, timeout >= 0 {
                    return .failure(SystemError("sendmsg", "activation stream", code: ETIMEDOUT))
                }
            case let code: return .failure(SystemError("sendmsg", "activation stream", code: code))
            }
        }
    }

    private static func advance(_ vectors: UnsafeMutableBufferPointer<iovec>, _ first: inout Int, by count: Int) {
        var rest = count
        while first < vectors.count, rest >= vectors[first].iov_len {
            rest -= vectors[first].iov_len
            first += 1
        }
        guard first < vectors.count, rest > 0 else { return }
        vectors[first].iov_base = vectors[first].iov_base.map { $0 + rest }
        vectors[first].iov_len -= rest
    }
}
