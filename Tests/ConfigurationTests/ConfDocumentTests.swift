import XCTest
@testable import Configuration

final class ConfDocumentTests: XCTestCase {
    /// Uses every production of the grammar.
    static let everything = """
        # comment
        a = "double" # behind a value
        b='single "quoted"';c = 7
        d = -12
          e = \"\"\"three
        "quotes" \"\"\"
        f = [ "x", 'y',
          # within a list
          3, ]
        g = []
        h_1 = "größe"
        """

    private func parse(_ text: String) throws(ConfigurationError) -> [ConfDocument.Entry] {
        try ConfDocument(bytes: Array(text.utf8), file: "t.conf").entries
    }

    func testEveryProduction() throws {
        let entries = try parse(Self.everything)
        XCTAssertEqual(entries.map(\.name), ["a", "b", "c", "d", "e", "f", "g", "h_1"])
        let contents = entries.map(\.value.content)
        XCTAssertEqual(contents[0], .string("double"))
        XCTAssertEqual(contents[1], .string("single \"quoted\""))
        XCTAssertEqual(contents[2], .integer(7))
        XCTAssertEqual(contents[3], .integer(-12))
        XCTAssertEqual(contents[4], .string("three\n\"quotes\" "))
        guard case .list(let list) = contents[5] else { return XCTFail("f is no list") }
        XCTAssertEqual(list.map(\.content), [.string("x"), .string("y"), .integer(3)])
        XCTAssertEqual(list[2].position, .init(line: 9, column: 3))
        XCTAssertEqual(contents[6], .list([]))
        XCTAssertEqual(contents[7], .string("größe"))
    }

    func testLineEndsOfOtherSystems() throws {
        for text in ["a = 1\r\nb = 2\r\n", "a = 1\rb = 2\r", "a = 1\n\n\r\n b = 2", "a = 1;b = 2;"] {
            XCTAssertEqual(try parse(text).map(\.value.content), [.integer(1), .integer(2)], text.debugDescription)
        }
        XCTAssertEqual(try parse("a = 1\r\n\r\nb = 2")[1].position.line, 3)
    }

    func testEmptyFiles() throws {
        for text in ["", "\n", "   ", "# only a comment", "\t# c\n\n"] { XCTAssertEqual(try parse(text), []) }
    }

    func testBackslashesAreNoEscapes() throws {
        XCTAssertEqual(try parse(#"a = "C:\n""#)[0].value.content, .string(#"C:\n"#))
    }

    func testBrokenInputs() {
        let cases: [(text: String, line: Int, column: Int, message: String)] = [
            ("a", 1, 2, "Expected '=' after 'a', found the end of the file"),
            ("a\n= 1", 1, 2, "Expected '=' after 'a', found the end of the line"),
            ("a 1", 1, 3, "Expected '=' after 'a', found '1'"),
            ("a-b = 1", 1, 2, "Expected '=' after 'a', found '-'"),
            ("a =", 1, 4, "Expected a value for 'a', found the end of the file"),
            ("a = \nb = 1", 1, 5, "Expected a value for 'a', found the end of the line"),
            ("a = true", 1, 5, "Expected a value for 'a', found 't'"),
            ("a = # none", 1, 5, "Expected a value for 'a', found '#'"),
            ("1a = 1", 1, 1, "Expected a key, found '1'"),
            ("= 1", 1, 1, "Expected a key, found '='"),
            ("[section]", 1, 1, "Expected a key, found '['"),
            ("\u{FEFF}a = 1", 1, 1, "Expected a key, found the byte 0xef"),
            ("a = \"open", 1, 5, "The string that begins here has no end on its line"),
            ("a = 1\nb = 'open\nc = 1", 2, 5, "The string that begins here has no end on its line"),
            ("a = \"\"\"open\n\"\"", 1, 5, "The string that begins here has no end"),
            ("a = \"x\" \"y\"", 1, 9, "Expected the end of the line after the value of 'a', found '\"'"),
            ("a = \"ö\" x", 1, 9, "Expected the end of the line after the value of 'a', found 'x'"),
            ("a = 1 2", 1, 7, "Expected the end of the line after the value of 'a', found '2'"),
            ("a = 20ms", 1, 7, "Expected the end of a number, found 'm'"),
            ("a = 0.5", 1, 6, "Expected the end of a number, found '.'"),
            ("a = 0x10", 1, 6, "Expected the end of a number, found 'x'"),
            ("a = -", 1, 6, "Expected digits, found the end of the file"),
            ("a = +-1", 1, 6, "Expected digits, found '-'"),
            ("a = 9223372036854775808", 1, 5, "The number is too large"),
            ("a = [ 1, 2", 1, 5, "The list 'a' that begins here has no end"),
            ("a = [", 1, 5, "The list 'a' that begins here has no end"),
            ("a = [ 1,\n\n", 1, 5, "The list 'a' that begins here has no end"),
            ("a = [ \"x\" \"y\" ]", 1, 11, "Expected ',' or ']' in the list 'a', found '\"'"),
            ("a = [ , ]", 1, 7, "Expected a value for 'a', found ','"),
            ("a = [ [ 1 ] ]", 1, 7, "A list within the list 'a'"),
            ("a = ]", 1, 5, "Expected a value for 'a', found ']'"),
            ("a = 1\n# c\nb = 2\na = 3", 4, 1, "Key 'a' is given twice: first on line 1"),
            ("a = \"x\0y\"", 1, 5, "The string that begins here is not valid UTF-8 text"),
            ("\0", 1, 1, "Expected a key, found the byte 0x0"),
        ]
        for (text, line, column, message) in cases {
            do {
                XCTFail("\(text.debugDescription) was parsed as \(try parse(text))")
            } catch {
                XCTAssertEqual(error.message, message, text.debugDescription)
                XCTAssertEqual(error.position, .init(line: line, column: column), text.debugDescription)
                XCTAssertFalse(error.advice.isEmpty, text.debugDescription)
                XCTAssertTrue(error.description.hasPrefix("t.conf, line \(line), column \(column): \(message). "), error.description)
            }
        }
    }

    func testInvalidUTF8() {
        XCTAssertThrowsError(try ConfDocument(bytes: Array("a = \"".utf8) + [0xC3, 0x28] + Array("\"".utf8), file: "t"))
        XCTAssertNoThrow(try ConfDocument(bytes: Array("# ".utf8) + [0xFF, 0xFE], file: "t"))
    }

    func testCutAtEveryByteNeverTraps() {
        let bytes = Array(Self.everything.utf8)
        for end in 0...bytes.count { _ = try? ConfDocument(bytes: Array(bytes[..<end]), file: "t") }
        for start in 0...bytes.count { _ = try? ConfDocument(bytes: Array(bytes[start...]), file: "t") }
    }

    func testSeededMutationsNeverTrap() {
        var seed: UInt64 = 0x5EED
        func random(_ bound: Int) -> Int {
            seed = seed &* 6364136223846793005 &+ 1442695040888963407
            return Int((seed >> 33) % UInt64(bound))
        }
        let interesting = Array("\"'[],;=#\n\r \t-+0a_\\".utf8) + [0, 0x7F, 0x80, 0xC3, 0xFF]
        let original = Array(Self.everything.utf8)
        var accepted = 0
        for _ in 0..<4000 {
            var bytes = original
            for _ in 0...random(4) {
                let place = random(bytes.count)
                switch random(3) {
                case 0: bytes[place] = interesting[random(interesting.count)]
                case 1: bytes.insert(interesting[random(interesting.count)], at: place)
                default: bytes.remove(at: place)
                }
            }
            if (try? ConfDocument(bytes: bytes, file: "t")) != nil { accepted += 1 }
        }
        // Both outcomes have to occur, or the mutations test nothing.
        XCTAssertTrue((1..<4000).contains(accepted), "\(accepted)")
    }

    func testLongFileIsLinear() throws {
        // One line of 200 000 elements: positions must not make this quadratic.
        let text = "a = [" + String(repeating: "1,\n", count: 100_000) + "]"
        guard case .list(let list) = try parse(text)[0].value.content else { return XCTFail("no list") }
        XCTAssertEqual(list.count, 100_000)
    }
}
