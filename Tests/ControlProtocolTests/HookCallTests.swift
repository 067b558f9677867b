import ControlProtocol
import XCTest

final class HookCallTests: XCTestCase {
    private static let texts = [
        "", "web1", "a b", "\"", "\\", "\\n", "\n", "\r\n", "\t\u{1}\u{1f}\u{7f}", "/", "w\u{e9}b", "\u{2028}\u{1F30A}", "</domain>\n<!-- \u{0} -->", "{\"hook\":",
    ]

    /// The hook's line says the same as one that Foundation made.
    func testLineIsTheRequest() throws {
        for operation in HookCall.Operation.allCases {
            for (index, text) in Self.texts.enumerated() {
                let other = Self.texts[Self.texts.count - 1 - index]
                for call in [HookCall(domain: text, operation: operation), HookCall(domain: text, operation: operation, subOperation: other, extra: text, xml: other),
                             HookCall(domain: other, operation: operation, xml: text)] {
                    XCTAssertFalse(call.requestLine.contains(UInt8(ascii: "\n")), "\(call)")
                    let request = try ControlCodec.decode(ControlRequest.self, from: call.requestLine)
                    XCTAssertEqual(request.verb, .hook)
                    XCTAssertEqual(request.hook, call)
                }
            }
        }
    }

    func testKeysAreThoseOfEveryRequest() throws {
        var request = ControlRequest(.hook)
        request.hook = HookCall(domain: "web1", operation: .release, subOperation: "end", extra: "from snapshot", xml: "<domain/>\n")
        XCTAssertEqual(request.hook?.requestLine, try ControlCodec.encode(request))
    }

    func testArguments() {
        XCTAssertEqual(HookCall(arguments: ["web1", "release", "end", "crashed"]), HookCall(domain: "web1", operation: .release, subOperation: "end", extra: "crashed"))
        XCTAssertEqual(HookCall(arguments: ["web1", "start", "begin", "-"]), HookCall(domain: "web1", operation: .start, subOperation: "begin"))
        XCTAssertEqual(HookCall(arguments: ["web1", "start"]), HookCall(domain: "web1", operation: .start))
        for words in [[], ["web1"], ["", "start"], ["-", "start"], ["web1", "levitate"], ["web1", ""]] { XCTAssertNil(HookCall(arguments: words), "\(words)") }
    }
}
