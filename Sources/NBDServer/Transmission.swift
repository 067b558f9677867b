import Glibc
import Platform

/// Requests and replies of one connection after the handshake, in order.
///
///     waiting --request--> serving --reply--> waiting
///        |                    '--WRITE refused: its payload is taken and dropped--> reply
///        '--DISC, close, garbage, a stalled payload--> end
///
/// A reply that has nothing to tell but success or failure, big-endian (the others are in Replies.swift):
///
///      0  u32 0x67446698   u32 error, 0 for success   u64 cookie
///
/// The path of a WRITE neither allocates nor counts references: the export is a parameter all the way down, not a property.
struct Transmission: ~Copyable {
    /// A WRITE beyond `maximumPayload` is read and refused up to this length.
    static let mostDrainedBytes = 32 << 20
    /// Above it the copying of payload that was read ahead costs more than the system calls that it saves.
    private static let mostReadAheadPayload = 16 << 10
    /// As much may be written before its replies go out; a client that waits for them has other work under way meanwhile.
    private static let mostUnansweredBytes = 128 << 10

    var channel: Channel
    let rules: RequestRules
    let id: NBDConnectionID
    /// For what is read; made when there is something to read.
    var readMemory: MappedMemory?
    private var unanswered = 0

    init(channel: consuming Channel, rules: RequestRules, id: NBDConnectionID) {
        self.channel = channel
        self.rules = rules
        self.id = id
    }

    /// Until the client says DISC.
    mutating func run(_ export: some NBDExport) throws(NBDProtocolError) {
        while true {
            try channel.need(Wire.requestBytes, deadline: nil, during: "a request")
            let magic = channel.bytes.big(0, as: UInt32.self)
            guard magic == Wire.request else { throw try ending(.badRequestMagic(magic, at: channel.position)) }
            let request = Request(channel.bytes)
            channel.take(Wire.requestBytes)
            if request.number == Command.write.rawValue {
                try write(request, export)
                continue
            }
            channel.readAhead = Channel.inputBytes
            if request.number == Command.disconnect.rawValue { return try channel.flush() }
            // All of these may take their time, and none of the replies before should take it, too.
            try answerWaiting()
            try serve(request, export)
        }
    }

    // MARK: WRITE

    private mutating func write(_ request: Request, _ export: some NBDExport) throws(NBDProtocolError) {
        if let refusal = request.refusal(rules) { return try refuseWrite(request, refusal) }
        let length = Int(request.length)
        channel.readAhead = length <= Transmission.mostReadAheadPayload ? Channel.inputBytes : Wire.requestBytes
        if channel.hasPending, unanswered > Transmission.mostUnansweredBytes || !export.takesWriteAtOnce(length: length, connection: id) {
            try answerWaiting()
        }
        let memory: UnsafeMutableRawPointer
        do {
            memory = try export.prepareWrite(length: length, connection: id)
        } catch {
            return try refuseWrite(request, error)
        }
        do {
            try channel.takePayload(memory, length)
            if request.forceUnitAccess { try answerWaiting() }
        } catch {
            export.abandonWrite(connection: id)
            throw error
        }
        do {
            let bytes = UnsafeRawBufferPointer(start: memory, count: length)
            try export.write(offset: request.offset, bytes: bytes, forceUnitAccess: request.forceUnitAccess, connection: id)
        } catch {
            return try fail(request, error)
        }
        unanswered += length
        try succeed(request)
    }

    private mutating func refuseWrite(_ request: Request, _ error: NBDError) throws(NBDProtocolError) {
        let length = Int(request.length)
        guard length <= Transmission.mostDrainedBytes else {
            let at = channel.position - UInt64(Wire.requestBytes)
            throw try ending(.writeTooLong(length: length, limit: Transmission.mostDrainedBytes, at: at))
        }
        try channel.drain(length, deadline: nil, during: "the payload of a refused WRITE")
        try fail(request, error)
    }

    // MARK: The others

    private mutating func serve(_ request: Request, _ export: some NBDExport) throws(NBDProtocolError) {
        if let refusal = request.refusal(rules) { return try fail(request, refusal) }
        switch request.command {
        case .read: return try read(request, export)
        case .blockStatus: return try blockStatus(request, export)
        default: break
        }
        do {
            try perform(request, export)
        } catch {
            return try fail(request, error)
        }
        try succeed(request)
    }

    private func perform(_ request: Request, _ export: some NBDExport) throws(NBDError) {
        let length = UInt64(request.length)
        switch request.command {
        case .flush: try export.flush()
        case .trim: try export.trim(offset: request.offset, length: length, forceUnitAccess: request.forceUnitAccess)
        case .writeZeroes:
            if request.flags.contains(.fastZero), !rules.zeroesFast {
                throw NBDError(ENOTSUP, "Zeros are no faster than a WRITE here")
            }
            try export.writeZeroes(offset: request.offset, length: length, mayTrim: !request.flags.contains(.noHole),
                                   forceUnitAccess: request.forceUnitAccess)
        default: break
        }
    }

    // MARK: Replies without content

    private mutating func answerWaiting() throws(NBDProtocolError) {
        unanswered = 0
        try channel.flush()
    }

    /// What came before the end is answered.
    private mutating func ending(_ error: NBDProtocolError) throws(NBDProtocolError) -> NBDProtocolError {
        try channel.flush()
        return error
    }

    private mutating func succeed(_ request: Request) throws(NBDProtocolError) {
        try simpleReply(request.cookie, 0)
    }

    mutating func simpleReply(_ cookie: UInt64, _ error: UInt32) throws(NBDProtocolError) {
        let place = try channel.reply(Wire.simpleReplyBytes)
        place.storeBig(Wire.simpleReply, 0)
        place.storeBig(error, 4)
        place.storeBig(cookie, 8)
    }
}
