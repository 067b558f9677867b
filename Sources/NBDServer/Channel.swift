import Glibc
import Platform

/// A client's socket with one buffer for what it sends and one for what it gets.
///
///     socket --recv--> input  [taken | available | free]     headers, options, and the beginning of a payload
///            --recv--> the export's memory                   the rest of the payload, straight
///     socket <--send-- output + attached data                all replies since the last send, in order
///
/// Nothing blocks before the replies are out: whatever we wait for, the client may be waiting for them.
struct Channel: ~Copyable {
    /// Room for the longest option, and for fifteen writes of 4 KiB in one call.
    static let inputBytes = 64 << 10
    static let outputBytes = 32 << 10
    private static let mostVectors = 128

    let fd: Int32
    private let wake: Int32
    /// For a header, a payload, or the client's taking of the replies.
    var transferMilliseconds: Double
    private let input: UnsafeMutableRawPointer
    private let output: UnsafeMutableRawPointer
    private let vectors: UnsafeMutablePointer<iovec>
    private let outVectors: UnsafeMutablePointer<iovec>

    private var head = 0
    private var tail = 0
    /// Bytes of the client's taken so far.
    private(set) var position: UInt64 = 0
    /// How much may be read beyond what is asked for. Payload that is read ahead is copied once more, so after large payloads this
    /// is a header and no more.
    var readAhead = Channel.inputBytes

    private var outCount = 0
    private var outVectored = 0
    private var outVectorCount = 0
    /// Replies that wait to be sent.
    var hasPending: Bool { outCount > 0 }

    /// Does not own `fd`.
    init(fd: Int32, wake: Int32, transferMilliseconds: Double) {
        self.fd = fd
        self.wake = wake
        self.transferMilliseconds = transferMilliseconds
        input = .allocate(byteCount: Channel.inputBytes, alignment: 64)
        output = .allocate(byteCount: Channel.outputBytes, alignment: 64)
        vectors = .allocate(capacity: 2)
        outVectors = .allocate(capacity: Channel.mostVectors)
    }

    deinit {
        input.deallocate()
        output.deallocate()
        vectors.deallocate()
        outVectors.deallocate()
    }

    // MARK: Input

    var available: Int { tail - head }

    /// What `need` has provided; valid until the next call that receives.
    var bytes: UnsafeRawPointer { UnsafeRawPointer(input + head) }

    mutating func take(_ count: Int) {
        head += count
        position += UInt64(count)
        if head == tail {
            head = 0
            tail = 0
        }
    }

    /// Waits until `count` bytes, at most `inputBytes`, are available. Without a deadline it waits for the first byte as long as
    /// it takes, and from then on for the time of a transfer.
    mutating func need(_ count: Int, deadline: MonotonicTime?, during what: String) throws(NBDProtocolError) {
        if available >= count { return }
        if head > 0 {
            memmove(input, input + head, available)
            tail -= head
            head = 0
        }
        var limit = deadline
        while available < count {
            if limit == nil, available > 0 { limit = transferDeadline }
            let room = min(Channel.inputBytes, max(count, readAhead)) - tail
            vectors[0] = iovec(iov_base: input + tail, iov_len: room)
            tail += try receive(1, missing: count - available, deadline: limit, during: what)
        }
    }

    /// Receives `count` bytes of payload to `base`: what is in the buffer is copied, the rest goes straight there.
    mutating func takePayload(_ base: UnsafeMutableRawPointer, _ count: Int) throws(NBDProtocolError) {
        var done = min(count, available)
        memcpy(base, input + head, done)
        take(done)
        if done == count { return }
        let deadline = transferDeadline
        while done < count {
            // The buffer is empty here; what follows the payload goes there by the same call.
            vectors[0] = iovec(iov_base: base + done, iov_len: count - done)
            vectors[1] = iovec(iov_base: input, iov_len: readAhead)
            let received = try receive(2, missing: count - done, deadline: deadline, during: "the payload of a WRITE")
            let direct = min(received, count - done)
            done += direct
            position += UInt64(direct)
            tail = received - direct
        }
    }

    /// Takes `count` bytes that nobody wants.
    mutating func drain(_ count: Int, deadline: MonotonicTime?, during what: String) throws(NBDProtocolError) {
        var left = count
        let limit = deadline ?? transferDeadline
        while left > 0 {
            try need(1, deadline: limit, during: what)
            let some = min(left, available)
            take(some)
            left -= some
        }
    }

    private var transferDeadline: MonotonicTime { MonotonicTime.now.adding(milliseconds: transferMilliseconds) }

    /// Fills the first `count` vectors with what there is, at least one byte.
    private mutating func receive(_ count: Int, missing: Int, deadline: MonotonicTime?, during what: String) throws(NBDProtocolError) -> Int {
        var message = msghdr()
        message.msg_iov = vectors
        message.msg_iovlen = count
        while true {
            let n = recvmsg(fd, &message, Int32(MSG_DONTWAIT))
            if n > 0 { return n }
            if n == 0 { throw failed(.closed(received: available, expected: available + missing)) }
            if errno == EINTR { continue }
            guard errno == EAGAIN || errno == EWOULDBLOCK else { throw failed(.system(SystemError("recvmsg"))) }
            try flush()
            let ready: PollEvents
            do {
                ready = try Platform.wait(fd, for: .readable, wake: wake, until: deadline)
            } catch {
                throw failed(error)
            }
            if ready.isEmpty { throw failed(.timedOut(during: what)) }
        }
    }

    private func failed(_ error: ChannelError) -> NBDProtocolError { .channel(error, at: position) }

    // MARK: Output

    /// Room for `count` bytes of reply, at most `outputBytes`; the caller fills it before the next call.
    mutating func reply(_ count: Int) throws(NBDProtocolError) -> UnsafeMutableRawPointer {
        if outCount + count > Channel.outputBytes { try flush() }
        let place = output + outCount
        outCount += count
        return place
    }

    /// Puts bytes behind the replies so far. They stay where they are, and have to until `flush`.
    mutating func attach(_ base: UnsafeMutableRawPointer, _ count: Int) throws(NBDProtocolError) {
        if outVectorCount + 3 > Channel.mostVectors { try flush() }
        closeVector()
        outVectors[outVectorCount] = iovec(iov_base: base, iov_len: count)
        outVectorCount += 1
    }

    /// Sends all replies.
    mutating func flush() throws(NBDProtocolError) {
        if outCount == 0 && outVectorCount == 0 { return }
        closeVector()
        let list = UnsafeMutableBufferPointer(start: outVectors, count: outVectorCount)
        outCount = 0
        outVectored = 0
        outVectorCount = 0
        do {
            try writeFully(fd, vectors: list, wake: wake, deadline: transferDeadline, during: "sending replies")
        } catch {
            throw failed(error)
        }
    }

    private mutating func closeVector() {
        guard outCount > outVectored else { return }
        outVectors[outVectorCount] = iovec(iov_base: output + outVectored, iov_len: outCount - outVectored)
        outVectorCount += 1
        outVectored = outCount
    }
}
