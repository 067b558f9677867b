import Glibc

/// What the two sides of COLO say to each other, each a u32. QEMU `qapi/migration.json`, `COLOMessage`.
public enum COLOMessage: UInt32, Sendable, Equatable {
    case checkpointReady = 0, checkpointRequest, checkpointReply, vmstateSend, vmstateSize, vmstateReceived, vmstateLoaded

    /// As QEMU's sources write it.
    public var name: String {
        switch self {
        case .checkpointReady: "CHECKPOINT_READY"
        case .checkpointRequest: "CHECKPOINT_REQUEST"
        case .checkpointReply: "CHECKPOINT_REPLY"
        case .vmstateSend: "VMSTATE_SEND"
        case .vmstateSize: "VMSTATE_SIZE"
        case .vmstateReceived: "VMSTATE_RECEIVED"
        case .vmstateLoaded: "VMSTATE_LOADED"
        }
    }
}

/// What the first pass, a live migration of all RAM, brought.
public struct FirstPass: Sendable, Equatable {
    public let header: StreamHeader
    /// Pages sent with their bytes; one sent twice counts twice.
    public let pages: UInt64
    /// Pages sent as one fill byte.
    public let fills: UInt64
}

/// One epoch's device state and counts. The bytes lie in one of the chunks of `StreamReader.takeChunks`.
public struct DeviceState {
    public let bytes: UnsafeRawBufferPointer
    public let pages: UInt64
    public let fills: UInt64

    @usableFromInline
    init(bytes: UnsafeRawBufferPointer, pages: UInt64, fills: UInt64) {
        self.bytes = bytes
        self.pages = pages
        self.fills = fills
    }
}

/// Our side of a COLO stream: we answer as QEMU's secondary would, and keep what it sends. QEMU `migration/colo.c`.
///
///                firstPass()          drainFirstDeviceState()*, sendReady()
///     [opening] ------------> [tail] ----------------------------------> [idle] <--------------------------.
///                                                                          | awaitRequest()                |
///                                                                     [requested]                          |
///                                                                          | reply()                       |
///                                                                      [replied]                           |
///                                                                          | receiveEpoch()                |
///                                                       acknowledgeEarly: -+-------------------------------+
///                                                                          |                               |
///                                                                       [held] -- acknowledge() -----------'
///
///     The guest stands still from some time after reply() to acknowledge(). Any error but `interrupted` or `timedOut` in
///     [opening] before the first byte, [idle] or [replied] before VMSTATE_SEND leads to [broken], which allows nothing.
///
/// A call that the state does not allow throws `outOfOrder` and changes nothing. Not thread-safe: one thread at a time.
public final class COLODialogue {
    @usableFromInline
    enum State: String {
        case opening, tail, idle, requested, replied, held, broken
    }

    public let reader: StreamReader
    @usableFromInline let parser: SectionParser
    @usableFromInline var state = State.opening
    private var tail: [UInt8] = []
    private var tailSearched = 0

    /// Device states are 30 to 300 KB; virtio-gpu and SCSI requests in flight make them larger.
    public static let deviceStateLimit: UInt64 = 256 << 20

    public init(reader: StreamReader) {
        self.reader = reader
        parser = SectionParser(reader: reader)
    }

    /// Where in the diagram the dialogue stands, for logs and tests.
    public var stateName: String { state.rawValue }

    /// What the stream said about itself; nil before `ram` start.
    public var header: StreamHeader? { parser.header }

    /// Reads everything up to the end of `ram end`: the whole RAM, some of it several times. The guest runs meanwhile, and is
    /// stopped when this returns.
    @inlinable
    public func firstPass<S: PageSink>(into sink: inout S) throws(StreamError) -> FirstPass {
        try enter(.opening, "firstPass")
        do throws(StreamError) {
            try parser.fileHeader()
            while true {
                reader.section = "section type"
                let type = try reader.takeU8()
                switch type {
                case 0x07 where parser.header == nil && parser.configuration == nil: try parser.configurationSection()
                case 0x08: try parser.command()
                case 0x01, 0x02: try parser.ramSection(type: type, into: &sink)
                case 0x03:
                    try parser.ramSection(type: type, into: &sink)
                    return try finishFirstPass()
                default: throw reader.fail(.unknownSection(type), back: 1)
                }
            }
        } catch {
            throw broken(error)
        }
    }

    @usableFromInline
    func finishFirstPass() throws(StreamError) -> FirstPass {
        guard let header = parser.header else { throw reader.fail(.misplacedBlockList) }
        state = .tail
        let result = FirstPass(header: header, pages: parser.pages, fills: parser.fills)
        return result
    }

    /// Throws away what has come of the device state that follows the first pass, without waiting.
    ///
    /// Its length is nobody's business until its description has come, and a machine type may send none. So: call this until it
    /// returns true, or until QEMU's migration status is `colo` and once more.
    ///
    /// - Returns: whether the description (0x06, length, JSON) has come to its last byte.
    public func drainFirstDeviceState(limit: Int = Int(deviceStateLimit)) throws(StreamError) -> Bool {
        try enter(.tail, "drainFirstDeviceState")
        reader.section = "first device state"
        do throws(StreamError) {
            guard try reader.drain(into: &tail, limit: limit) else { throw reader.fail(.endOfStream) }
            return tailIsComplete()
        } catch {
            throw broken(error)
        }
    }

    /// How a description begins: in QEMU 7.2, and in 10.0, which puts the machine's configuration first.
    private static let descriptionMarks = [Array("{\"page_size\"".utf8), Array("{\"configuration\"".utf8)]

    /// Looks for 00 06 u32 and one of the marks, with that length reaching exactly to the end of what has come.
    private func tailIsComplete() -> Bool {
        let marks = Self.descriptionMarks
        // Every description is longer than each of the marks.
        let longest = marks.lazy.map(\.count).max() ?? 0
        return tail.withUnsafeBytes { bytes in
            guard let base = bytes.baseAddress else { return false }
            while tailSearched + longest <= bytes.count {
                let rest = bytes.count - longest + 1 - tailSearched
                guard let hit = memchr(base + tailSearched, Int32(UInt8(ascii: "{")), rest) else {
                    tailSearched += rest
                    return false
                }
                let start = UnsafeRawPointer(hit) - base
                if start >= 6, marks.contains(where: { memcmp(hit, $0, $0.count) == 0 }), bytes[start - 6] == SectionType.endOfSections,
                   bytes[start - 5] == SectionType.description {
                    let length = UInt32(bigEndian: (base + start - 4).loadUnaligned(as: UInt32.self))
                    tailSearched = start
                    return start + Int(length) == bytes.count
                }
                tailSearched = start + 1
            }
            return false
        }
    }

    /// Starts COLO: the guest runs, and asks for its first checkpoint when its delay has passed. Only once QEMU's migration
    /// status is `colo` and the device state is drained.
    public func sendReady() throws(StreamError) {
        try enter(.tail, "sendReady")
        tail = []
        try say(.checkpointReady)
        state = .idle
    }

    /// Waits until the guest asks for a checkpoint. May be repeated after `interrupted` and `timedOut`.
    public func awaitRequest() throws(StreamError) {
        try enter(.idle, "awaitRequest")
        reader.section = "between epochs"
        reader.rewindIfUnshared()
        try expect(.checkpointRequest)
        state = .requested
    }

    /// Grants the checkpoint: QEMU stops the guest. It may be withheld as long as one likes, the guest runs on.
    public func reply() throws(StreamError) {
        try enter(.requested, "reply")
        try say(.checkpointReply)
        state = .replied
    }

    /// Reads one epoch: its dirty pages, then its device state.
    ///
    /// - Parameters:
    ///   - beforeBody: called when the guest has stopped and all its disk writes are flushed (VMSTATE_SEND), before its pages
    ///     are read: the place to mark the end of the epoch in the disk mirror.
    ///   - acknowledgeEarly: acknowledge as soon as all pages are there and the device state is on its way (VMSTATE_SIZE). QEMU
    ///     hands that to the socket before it looks for the acknowledgement, so the epoch is whole all the same, and the guest's
    ///     pause does not contain our last wake-up. Not earlier: until then a guest that runs again, because somebody resumed it,
    ///     tears the epoch, and that has to be told from our own doing. Never with `true` when the guest is to be held for a swap.
    ///   - beforeAcknowledge: called before an early acknowledgement is sent: any RESUME before that is somebody else's.
    /// - Returns: the device state. Its bytes and the pages live in the chunks that `reader.takeChunks()` now hands over.
    @inlinable
    public func receiveEpoch<S: PageSink>(into sink: inout S, acknowledgeEarly: Bool, beforeAcknowledge: () -> Void = {},
                                          beforeBody: () -> Void = {}) throws(StreamError) -> DeviceState {
        try enter(.replied, "receiveEpoch")
        reader.section = "epoch"
        try expect(.vmstateSend)
        beforeBody()
        do throws(StreamError) {
            let pages = parser.pages
            let fills = parser.fills
            try liveState(into: &sink)
            let size = try deviceStateSize()
            if acknowledgeEarly {
                beforeAcknowledge()
                try say(.vmstateReceived, .vmstateLoaded)
            }
            let bytes = try deviceState(size, &sink)
            state = acknowledgeEarly ? .idle : .held
            return DeviceState(bytes: bytes, pages: parser.pages &- pages, fills: parser.fills &- fills)
        } catch {
            throw broken(error)
        }
    }

    /// Commands and `ram` parts if any, `ram end`, and the byte 0x00. QEMU `qemu_savevm_live_state`.
    @inlinable
    func liveState<S: PageSink>(into sink: inout S) throws(StreamError) {
        var ended = false
        while true {
            reader.section = "epoch"
            let type = try reader.takeU8()
            switch type {
            case 0x02 where !ended: try parser.ramSection(type: type, into: &sink)
            // QEMU 10 announces the switchover first (MIG_CMD_SWITCHOVER_START, machine types from 10.0 on).
            case 0x08 where !ended: try parser.command()
            case 0x03 where !ended:
                try parser.ramSection(type: type, into: &sink)
                ended = true
            case 0x00 where ended: return
            default: throw reader.fail(.unknownSection(type), back: 1)
            }
        }
    }

    @inlinable
    func deviceStateSize() throws(StreamError) -> UInt64 {
        reader.section = "device state"
        try expect(.vmstateSize)
        let size = try reader.takeU64()
        guard size <= Self.deviceStateLimit else {
            throw reader.fail(.tooLong(what: "Device state", length: size, limit: Self.deviceStateLimit), back: 8)
        }
        return size
    }

    @inlinable
    func deviceState<S: PageSink>(_ size: UInt64, _ sink: inout S) throws(StreamError) -> UnsafeRawBufferPointer {
        let count = Int(size)
        try reader.require(count, &sink)
        let bytes = UnsafeRawBufferPointer(start: reader.cursor, count: count)
        reader.cursor += count
        return bytes
    }

    /// Lets the guest run on after an epoch that was held. Both messages in one write: QEMU wakes up once.
    public func acknowledge() throws(StreamError) {
        try enter(.held, "acknowledge")
        try say(.vmstateReceived, .vmstateLoaded)
        state = .idle
    }

    // MARK: Helpers

    @usableFromInline
    func enter(_ expected: State, _ call: String) throws(StreamError) {
        guard state == expected else {
            throw reader.fail(.outOfOrder(call: call, state: state.rawValue))
        }
    }

    /// Reads one message. When waiting for it is cut short the state stays as it is, and the call can be repeated.
    @usableFromInline
    func expect(_ message: COLOMessage) throws(StreamError) {
        do throws(StreamError) {
            try reader.require(4)
        } catch {
            switch error.kind {
            case .interrupted, .timedOut, .ceiling: throw error
            default: throw broken(error)
            }
        }
        let got = try reader.takeU32()
        guard got == message.rawValue else {
            throw broken(reader.fail(.unexpectedMessage(got: got, expected: message), back: 4))
        }
    }

    /// One or two messages in one write.
    @usableFromInline
    func say(_ first: COLOMessage, _ second: COLOMessage? = nil) throws(StreamError) {
        var words = (first.rawValue.bigEndian, (second ?? first).rawValue.bigEndian)
        let count = second == nil ? 4 : 8
        // The error as a value: Swift 6.0 knows typed throws in few of the library's closures.
        let failure: StreamError? = withUnsafeBytes(of: &words) { bytes in
            do throws(StreamError) {
                try reader.send(UnsafeRawBufferPointer(rebasing: bytes[..<count]))
                return nil
            } catch {
                return error
            }
        }
        if let failure { throw broken(failure) }
    }

    @usableFromInline
    func broken(_ error: StreamError) -> StreamError {
        state = .broken
        return error
    }
}
